"""Images of any bands: every kind of file read alike, statistics, hostile files, stems."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from support.file_server import serving

from backbones import ConvNeXt
from backbones.errors import InputError
from backbones.openmmlab.data.band_statistics import measure
from backbones.openmmlab.data.bands import Bands, composite, read_bands
from backbones.openmmlab.data.loading import IgnoreMissing, LoadImage
from backbones.openmmlab.data.rasters import image_size, open_raster
from backbones.weights.fitting import stand_in_stem

TINY = dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 8])
RNG = np.random.default_rng(0)
LAYOUTS: dict[str, dict] = {
    "strips": dict(rowsperstrip=5),
    "tiles": dict(tile=(16, 32)),
    "planes": dict(planarconfig="separate", tile=(16, 16)),
    "bigtiff": dict(bigtiff=True, byteorder=">", compression="zlib"),
    "pages": {},
}


def write_tiff(path: Path, pixels: np.ndarray, layout: str = "strips", **more) -> Path:
    options = {"photometric": "minisblack", **LAYOUTS[layout], **more}
    if pixels.shape[2] == 1:
        options.pop("planarconfig", None)
        pixels = pixels[..., 0]
    elif layout in ("planes", "pages"):
        pixels = pixels.transpose(2, 0, 1)
    else:
        options["planarconfig"] = "contig"
    tifffile.imwrite(path, pixels, **options)
    return path


def numbered(count: int, dtype: str, **more) -> Bands:
    names = tuple(str(i + 1) for i in range(count))
    return Bands(names, names, dtype, **more)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
def test_windows_are_the_stored_values(layout, dtype, tmp_path):
    for count in (1, 4, 13):
        pixels = (RNG.random((37, 53, count)) * 200).astype(dtype)
        path = write_tiff(tmp_path / "a.tif", pixels, layout)
        assert image_size(path) == (53, 37)
        chosen = [count - 1, 0]
        with open_raster(path) as raster:
            for left, top, right, bottom in ((0, 0, 53, 37), (17, 15, 40, 33)):
                found = raster.read(chosen, (left, top, right, bottom))
                expected = pixels[top:bottom, left:right][..., chosen]
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "stated", "value"),
    [("float32", "nan", np.nan), ("uint16", "7", 7), ("uint16", "-9999", 0), ("int16", None, 0)],
)
def test_blocks_that_were_never_written(dtype, stated, value, tmp_path):
    tags = [] if stated is None else [(42113, "s", 0, stated, True)]
    pixels = RNG.integers(1, 100, (16, 16, 2)).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(
            iter([b"", zlib.compress(pixels.tobytes())]), shape=(16, 32, 2), dtype=dtype,
            tile=(16, 16), photometric="minisblack", planarconfig="contig", compression="zlib",
            extratags=tags,
        )  # fmt: skip
    with open_raster(tmp_path / "a.tif") as raster:
        found = raster.read([0, 1], (0, 0, 32, 16))
        np.testing.assert_array_equal(found[:, 16:], pixels)
        np.testing.assert_array_equal(found[:, :16], np.full((16, 16, 2), value, dtype))
        np.testing.assert_equal(raster.unwritten_value((0, 0, 16, 16)), float(value))
        assert raster.unwritten_value((8, 0, 17, 16)) is None


def test_numpy_and_png_are_read_alike(tmp_path):
    pixels = RNG.integers(0, 60000, (20, 30, 3), np.uint16)
    np.save(tmp_path / "a.npy", pixels)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    for name in ("a.npy", "a.png"):
        found, missing = read_bands(tmp_path / name, numbered(3, "uint16"))
        np.testing.assert_array_equal(found, pixels.astype(np.float32))
        assert found.dtype == np.float32 and not missing.any()


def test_bands_are_chosen_and_ordered_by_name(tmp_path):
    pixels = RNG.integers(0, 255, (8, 9, 4), np.uint8)
    path = write_tiff(tmp_path / "a.tif", pixels)
    bands = Bands(("nir", "red"), ("blue", "green", "red", "nir"), "uint8")
    found = read_bands(path, bands)[0]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels[..., [3, 2]])
    with pytest.raises(InputError) as error:
        Bands(("swir",), bands.names, "uint8")
    assert error.value.code == "unknown-name" and error.value.where == "swir"


def test_missing_pixels_are_filled_and_ignored(tmp_path):
    pixels = RNG.random((8, 9, 2)).astype(np.float32) + 1
    pixels[2, 3, 1], pixels[4, 5, 0], pixels[6, 7, 0] = np.nan, -9999, np.inf
    path = write_tiff(tmp_path / "a.tif", pixels)
    load = LoadImage(
        bands=("1", "2"), band_names=("1", "2"), band_dtype="float32", nodata=-9999, fill=(5, 6)
    )
    results = load.transform(dict(img_path=str(path)))
    assert results is not None
    lacking = np.zeros((8, 9), bool)
    lacking[[2, 4, 6], [3, 5, 7]] = True
    np.testing.assert_array_equal(results["missing_pixels"], lacking)
    assert results["img"][2, 3, 1] == 6 and results["img"][4, 5, 0] == results["img"][6, 7, 0] == 5
    assert results["img"][2, 3, 0] == pixels[2, 3, 0]
    results["gt_seg_map"] = np.ones((8, 9), np.uint8)
    labels = IgnoreMissing().transform(results)["gt_seg_map"]
    np.testing.assert_array_equal(labels, np.where(lacking, 255, 1))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_statistics_are_numpys(dtype, tmp_path):
    pixels = (RNG.normal(500, 90, (5, 40, 30, 3)) * [1, 2, 0.1]).clip(1).astype(dtype)
    pixels[0, :5, :, 0] = 0
    paths = [write_tiff(tmp_path / f"{i}.tif", image) for i, image in enumerate(pixels)]
    found = measure(paths, numbered(3, dtype, nodata=0))
    kept = pixels[(pixels != 0).all(-1)].astype(np.float64)
    assert found.missing == pytest.approx((pixels == 0).any(-1).mean())
    for i, band in enumerate(found.bands):
        assert band.mean == pytest.approx(kept[:, i].mean(), rel=1e-9)
        assert band.std == pytest.approx(kept[:, i].std(), rel=1e-9)
        assert (band.low, band.high) == (kept[:, i].min(), kept[:, i].max())
        assert band.percentiles == pytest.approx(np.percentile(kept[:, i], (1, 50, 99)), rel=0.05)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def write_bomb(path: Path) -> None:
    """Write a file of some kilobytes that states 14.4 billion values."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            iter([b""] * 118**2), shape=(60000, 60000, 4), dtype=np.uint16, tile=(512, 512),
            photometric="minisblack", planarconfig="contig", compression="zlib",
        )  # fmt: skip


HOSTILE = {
    "cut off": lambda p: (write_tiff(p, np.ones((64, 64, 4), np.uint16)), cut_off(p)),
    "head alone": lambda p: p.write_bytes(b"II*\0\x08\0\0\0"),
    "empty": lambda p: p.write_bytes(b""),
    "band count": lambda p: write_tiff(p, np.ones((64, 64, 5), np.uint16)),
    "dtype": lambda p: write_tiff(p, np.ones((64, 64, 4), np.float32)),
    "all nodata": lambda p: write_tiff(p, np.zeros((64, 64, 4), np.uint16)),
    "bomb": write_bomb,
}


def write_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(np.ones((8, 9), np.uint16), photometric="minisblack")


def write_numpy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def write_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones((8, 9)), b=np.ones((8, 9)))


NO_IMAGES = {
    "complex.tif": lambda p: tifffile.imwrite(p, np.ones((8, 9), np.complex64)),
    "complex.npy": lambda p: write_numpy(p, np.ones((8, 9), np.complex64)),
    "pickled.npy": lambda p: write_numpy(p, np.array([[{}, print]], object)),
    "no bands.npy": lambda p: write_numpy(p, np.ones((8, 9, 0))),
    "four axes.npy": lambda p: write_numpy(p, np.ones((2, 8, 9, 3))),
    "cut off.npy": lambda p: (write_numpy(p, np.ones((8, 9))), cut_off(p)),
    "archive.npz": write_archive,
    "archive.npy": write_archive,
    "pages.tif": write_pages,
    "planes.tif": lambda p: tifffile.imwrite(
        p, np.ones((3, 8, 9), np.uint16), imagej=True, metadata=dict(axes="ZYX")
    ),
    "turned.tif": lambda p: tifffile.imwrite(
        p, np.ones((8, 9), np.uint16), extratags=[(274, "H", 1, 6, True)]
    ),
    "text.tif": lambda p: p.write_text("no image at all " * 20),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_ends_in_a_line(name, tmp_path):
    path = tmp_path / name
    NO_IMAGES[name](path)
    with pytest.raises(InputError) as error, open_raster(path):
        pass
    assert error.value.code == "bad-image" and error.value.where == str(path)
    assert "\n" not in str(error.value)


def test_rarer_kinds_are_read_as_their_libraries_do(tmp_path):
    pixels = RNG.integers(0, 60000, (20, 30, 3), np.uint16)
    smooth = cv2.GaussianBlur(pixels, (0, 0), 3)
    palette = RNG.integers(0, 60000, (3, 256), np.uint16)
    kinds = {
        "palette": (smooth[..., 0].astype(np.uint8), dict(photometric="palette", colormap=palette)),
        "jpeg": ((smooth // 256).astype(np.uint8), dict(photometric="rgb", compression="jpeg")),
        "jpeg2000": (pixels, dict(photometric="minisblack", compression="jpeg2000")),
        "predictor": (pixels, dict(photometric="minisblack", compression="zstd", predictor=2)),
        "half": (pixels[..., 0].astype(np.float16) / 7, {}),
        "overviews": (pixels, dict(photometric="minisblack", subifds=1)),
    }
    for name, (stored, options) in kinds.items():
        layout = dict(planarconfig="contig") if stored.ndim == 3 else {}
        with tifffile.TiffWriter(tmp_path / f"{name}.tif", byteorder=">") as writer:
            writer.write(stored, **layout, **options)
            if "subifds" in options:
                writer.write(stored[::2, ::2], photometric="minisblack", subfiletype=1, **layout)
        expected = tifffile.imread(tmp_path / f"{name}.tif").reshape(20, 30, -1)
        assert name.startswith("jpeg") or (expected == stored.reshape(20, 30, -1)).all()
        with open_raster(tmp_path / f"{name}.tif") as raster:
            found = raster.read(range(raster.count), (0, 0, 30, 20))
        np.testing.assert_array_equal(found, expected, name)
        assert found.std() > 0
    np.save(tmp_path / "big.npy", pixels.astype(">u2"))
    with open_raster(tmp_path / "big.npy") as raster:
        assert str(raster.dtype) == "uint16"  # as other files of the set state it
    found = read_bands(tmp_path / "big.npy", numbered(3, "uint16"))[0]
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(
    ("stated", "dtype", "expected"),
    [
        ("nan", "uint16", None),
        ("-9999", "uint16", None),
        ("0.5", "int32", None),
        ("none", "float32", None),
        ("nan", "float32", np.nan),
        ("-9999,5", "float32", -9999.5),
        ("-3.4028234663852886e+38", "float32", float(np.finfo(np.float32).min)),
        ("65535", "uint16", 65535),
    ],
)
def test_a_nodata_value_that_the_dtype_lacks_is_none(stated, dtype, expected, tmp_path, caplog):
    pixels = np.ones((8, 9, 2), dtype)
    pixels[3] = np.finfo(dtype).min if dtype == "float32" else 65535
    tags = [(42113, "s", 0, stated, True)]
    path = write_tiff(tmp_path / "a.tif", pixels, extratags=tags)
    with open_raster(path) as raster:
        np.testing.assert_equal(raster.nodata, expected)
        bands = numbered(2, dtype, nodata=raster.nodata)
    missing = read_bands(path, bands)[1]
    is_nodata = float(pixels[3, 0, 0]) == expected
    np.testing.assert_array_equal(missing, [[row == 3 and is_nodata] * 9 for row in range(8)])
    assert not caplog.records


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_rasters_end_in_a_line(kind, tmp_path):
    path = tmp_path / "a.tif"
    HOSTILE[kind](path)
    with pytest.raises(InputError) as error:
        read_bands(path, numbered(4, "uint16", nodata=0))
    assert error.value.code == "bad-image" and error.value.where == str(path)
    assert "\n" not in str(error.value)


def test_nan_everywhere_and_impossible_nodata(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.full((9, 9, 2), np.nan, np.float32))
    with pytest.raises(InputError) as error:
        read_bands(path, numbered(2, "float32"))
    assert error.value.code == "bad-image"
    for impossible in (-9999, 0.5, np.nan):
        with pytest.raises(InputError) as error:
            numbered(2, "uint16", nodata=impossible)
        assert error.value.code == "bad-value" and error.value.where == "nodata"


def test_composites_are_stretched(tmp_path):
    bands = Bands(("blue", "green", "red"), ("blue", "green", "red"), "uint16")
    image = np.arange(101, dtype=np.float32).reshape(1, -1, 1) * [1, 10, 100]
    shown = composite(image.astype(np.float32), bands)
    assert shown.shape == (1, 101, 3) and shown.dtype == np.uint8
    # Each of them is stretched from its 2nd to its 98th percentile: 50 is in the middle.
    assert (shown[0, [2, 50, 98]] == [[0] * 3, [128] * 3, [255] * 3]).all()


def test_stem_bands():
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 4, 4)
    image = torch.randn(2, 3, 16, 16)
    more = torch.randn(2, 5, 16, 16)
    more[:, [3, 1, 0]] = image
    stem = stand_in_stem(weight, ["blue", "green", None, "red", None])
    conv = torch.nn.functional.conv2d
    expected = conv(image.double(), weight.double(), stride=4)
    torch.testing.assert_close(conv(more.double(), stem.double(), stride=4), expected)
    twice = stand_in_stem(weight, ["red", "red"])
    torch.testing.assert_close(twice.sum(1), weight[:, 0])
    with pytest.raises(InputError) as error:
        stand_in_stem(weight, ["nir"])
    assert error.value.code == "bad-value"


def test_stem_bands_are_an_option_of_init_cfg(tmp_path):
    plain = ConvNeXt(TINY)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    chosen = ["blue", "green", "red", None]
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"), stem_bands=chosen)
    network = ConvNeXt(TINY, in_channels=4, init_cfg=init)
    network.init_weights()
    stem = network.downsample_layers[0][0].weight
    expected = plain.downsample_layers[0][0].weight
    assert (stem[:, :3].flip(1) == expected).all() and not stem[:, 3].any()


def test_dicom_is_rescaled_to_its_unit(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    stored = np.arange(12, dtype=np.int16).reshape(3, 4)
    file = pydicom.dataset.FileDataset(
        tmp_path / "slice.dcm", {}, preamble=b"\0" * 128,
        file_meta=pydicom.dataset.FileMetaDataset(),
    )  # fmt: skip
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.Rows, file.Columns, file.SamplesPerPixel = 3, 4, 1
    file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 1
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    file.PixelData = stored.tobytes()
    file.save_as(tmp_path / "slice.dcm", enforce_file_format=False)
    with open_raster(tmp_path / "slice.dcm") as raster:
        found = raster.read([0], (1, 0, 4, 2))
    np.testing.assert_array_equal(found[..., 0], stored[:2, 1:].astype(np.float32) * 2 - 1000)
    file.NumberOfFrames, file.PixelData = 2, 2 * stored.tobytes()
    file.save_as(tmp_path / "frames.dcm", enforce_file_format=False)
    with pytest.raises(InputError) as error, open_raster(tmp_path / "frames.dcm"):
        pass
    assert error.value.code == "bad-image" and "frames" in str(error.value)


def test_deflated_dicom_is_refused(tmp_path):
    """Such a file is inflated as a whole before anything states its size."""
    pydicom = pytest.importorskip("pydicom")
    path = tmp_path / "bomb.dcm"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(path, {}, preamble=b"\0" * 128, file_meta=meta)
    file.Rows, file.Columns = 3, 4
    file.save_as(path, enforce_file_format=False)
    with pytest.raises(InputError) as error, open_raster(path):
        pass
    assert error.value.code == "bad-image" and "deflated" in str(error.value)


def test_what_gdal_alone_reads(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    stored = np.random.default_rng(0).integers(0, 60000, (5, 8, 9), np.uint16)
    shape = dict(height=8, width=9, count=5, dtype="uint16")
    with rasterio.open(tmp_path / "scene.jp2.img", "w", driver="HFA", **shape) as file:
        file.write(stored)
    path = (tmp_path / "scene.jp2.img").rename(tmp_path / "scene.jp2")
    with open_raster(path) as raster:
        assert (raster.height, raster.width, raster.count) == (8, 9, 5)
        found = raster.read([4, 1], (2, 3, 9, 8))
    np.testing.assert_array_equal(found, stored[[4, 1], 3:, 2:].transpose(1, 2, 0))


def test_gdals_masks_and_overviews_are_no_images(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = RNG.integers(1, 60000, (1, 40, 50), np.uint16)
    shape = dict(height=40, width=50, count=1, dtype="uint16", crs="EPSG:32633")
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(path, "w", driver="GTiff", **shape) as file:
            file.write(pixels)
            file.write_mask(pixels[0] > 1000)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4])
    assert not [*tmp_path.glob("*.msk")]
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read([0], (0, 0, 50, 40))[..., 0], pixels[0])


STACKED = """<VRTDataset rasterXSize="9" rasterYSize="8">{}</VRTDataset>"""
LAYER = """<VRTRasterBand dataType="{}" band="{}"><SimpleSource>
<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand>"""


def test_files_of_one_band_each_are_stacked_by_gdal(tmp_path):
    pytest.importorskip("rasterio")
    pixels = RNG.integers(0, 60000, (8, 9, 3), np.uint16)
    for i in range(3):
        write_tiff(tmp_path / f"B{i + 1}.tif", pixels[..., i : i + 1])
    layers = "".join(LAYER.format("UInt16", i, f"B{i}.tif") for i in (1, 2, 3))
    (tmp_path / "stack.vrt").write_text(STACKED.format(layers))
    found = read_bands(tmp_path / "stack.vrt", numbered(3, "uint16"))[0]
    np.testing.assert_array_equal(found, pixels)
    for kinds in (("UInt16", "Float32"), ("CFloat32", "CFloat32")):
        layers = "".join(LAYER.format(k, i, f"B{i}.tif") for i, k in enumerate(kinds, start=1))
        (tmp_path / "mixed.vrt").write_text(STACKED.format(layers))
        with pytest.raises(InputError) as error, open_raster(tmp_path / "mixed.vrt"):
            pass
        assert error.value.code == "bad-image" and "mixed.vrt" in error.value.where


def test_lzw(tmp_path):
    stored = np.random.default_rng(0).integers(0, 60000, (8, 9, 5), np.uint16)
    layout = dict(photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "a.tif", stored, compression="lzw", **layout)
    with open_raster(tmp_path / "a.tif") as raster:
        np.testing.assert_array_equal(raster.read([3], (0, 0, 9, 8))[..., 0], stored[..., 3])


class TestBackends:
    LOAD = dict(bands=("2", "1"), band_names=("1", "2"), band_dtype="uint16")

    def test_files_of_a_server_and_of_the_disk_are_read_alike(self, tmp_path):
        pixels = RNG.integers(1, 60000, (8, 9, 2), np.uint16)
        write_tiff(tmp_path / "a.tif", pixels)
        np.save(tmp_path / "a.npy", pixels)
        cut_off(write_tiff(tmp_path / "cut.tif", np.ones((64, 64, 2), np.uint16)))
        local = LoadImage(**self.LOAD, backend_args=dict(backend="local"))
        remote = LoadImage(**self.LOAD, backend_args=dict(backend="http"))
        with serving() as server:
            for name in ("a.tif", "a.npy"):
                server.files[f"/{name}"] = (tmp_path / name).read_bytes()
                for load, path in ((local, tmp_path / name), (remote, f"{server.address}/{name}")):
                    results = load.transform(dict(img_path=str(path)))
                    assert results is not None
                    np.testing.assert_array_equal(results["img"], pixels[..., ::-1])
            server.files["/cut.tif"] = (tmp_path / "cut.tif").read_bytes()
            for url in (f"{server.address}/cut.tif", f"{server.address}/none.tif"):
                with pytest.raises(InputError) as error:
                    remote.transform(dict(img_path=url))
                assert error.value.where == url and error.value.code == "bad-image"
                assert "\n" not in str(error.value)


def test_shares_of_nodata_and_unreadable_images_are_measured(tmp_path):
    pixels = RNG.integers(1, 100, (10, 10, 2), np.uint16)
    pixels[:5, :, 0] = 0
    good = write_tiff(tmp_path / "0.tif", pixels)
    empty = write_tiff(tmp_path / "1.tif", np.zeros((10, 10, 2), np.uint16))
    other = write_tiff(tmp_path / "2.tif", pixels[..., :1])
    found = measure([good, empty, other], numbered(2, "uint16", nodata=0))
    assert [band.missing for band in found.bands] == [0.5, 0] and found.missing == 0.5
    assert [error.where for error in found.refused] == [str(empty), str(other)]


def test_one_band_is_shown_in_a_colour_map():
    image = np.linspace(0, 1, 50, dtype=np.float32).reshape(5, 10, 1)
    bands = Bands(("depth",), ("depth",), "float32", colour_map="viridis")
    grey = composite(image, Bands(("depth",), ("depth",), "float32"))
    np.testing.assert_array_equal(
        composite(image, bands), cv2.applyColorMap(grey[..., 0], cv2.COLORMAP_VIRIDIS)
    )
    for wrong in (dict(colour_map="plaid"), dict(composite=("depth", "depth"))):
        with pytest.raises(InputError):
            Bands(("depth",), ("depth",), "float32", **wrong)


def test_frames_of_a_video_are_read_by_models_of_their_bands():
    frame = RNG.integers(0, 256, (4, 5, 3), np.uint8)  # BGR
    bands = Bands(("Green", "Red"), ("Red", "Green", "nir"), "uint8")
    np.testing.assert_array_equal(bands.of_frame(frame, "a.mp4"), frame[..., [1, 2]])
    for others in (numbered(3, "uint8"), Bands(("red",), ("red",), "uint16")):
        with pytest.raises(InputError) as error:
            others.of_frame(frame, "a.mp4")
        assert error.value.code == "bad-image" and error.value.where == "a.mp4"
