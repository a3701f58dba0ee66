"""One decoder: the size in a header is that of the pixels, and damage is told from additions."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from support.odd_data import encoded, exif

from backbones.errors import UnreadableImage
from backbones.openmmlab.data.decoding import image_size, read_header, read_image, read_label_map
from backbones.openmmlab.data.image_files import read_headers
from backbones.openmmlab.data.loading import LoadImage

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (40, 64, 3), np.uint8)
KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")


def with_orientation(kind: str, orientation: int, frames: int = 1, **options: object) -> bytes:
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = exif(orientation)
    if frames > 1:
        options |= dict(save_all=True, append_images=[Image.fromarray(PIXELS)] * (frames - 1))
    return encoded(PIXELS, kind, **options)


def decoders(path: Path) -> dict[str, np.ndarray]:
    """The same image in BGR order from every door that reads images."""
    from backbones.openmmlab.classification.transforms import LoadRGB

    rgb = np.asarray(LoadRGB().transform(dict(img_path=str(path)))["img"])
    loaded = LoadImage().transform(dict(img_path=str(path)))
    assert loaded["img_shape"] == loaded["ori_shape"] == loaded["img"].shape[:2]
    return dict(read=read_image(path), pipeline=loaded["img"], classifier=rgb[..., ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_headers_have_the_decoded_size(kind, tmp_path):
    path = tmp_path / "image"
    for orientation in range(10):  # 0 and 9 mean nothing
        for frames in (1, 2) if kind != "JPEG" and (kind, orientation) != ("AVIF", 9) else (1,):
            if kind == "AVIF" and (frames == 2 or orientation in (0, 9)):
                continue  # which Pillow does not write
            path.write_bytes(with_orientation(kind, orientation, frames))
            found = decoders(path)
            height, width = found["read"].shape[:2]
            header = read_header(path)
            assert header.upright == image_size(path) == (width, height), (orientation, frames)
            assert header.size == (64, 40)
            for name, image in found.items():
                np.testing.assert_array_equal(image, found["read"], name)
            turns = kind in ("JPEG", "TIFF") or (kind == "PNG" and frames == 1)
            assert (height > width) == (turns and orientation in (5, 6, 7, 8))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"])
def test_pixels_are_mmcvs(mode, tmp_path):
    """Ordinary files, EXIF or not, are decoded bit by bit as OpenMMLab does."""
    path = tmp_path / "image"
    image = Image.fromarray(PIXELS)
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    for kind in ("JPEG", "PNG", "TIFF"):
        for orientation in (None, 3, 6):
            file = io.BytesIO()
            options = dict(exif=exif(orientation)) if orientation and kind != "TIFF" else {}
            try:
                image.save(file, kind, **options)
            except (OSError, KeyError):
                continue  # JPEG has no such mode
            path.write_bytes(file.getvalue())
            expected = LoadImageFromFile().transform(dict(img_path=str(path)))
            got = LoadImage().transform(dict(img_path=str(path)))
            assert got["img"].dtype == np.uint8
            np.testing.assert_array_equal(got["img"], expected["img"])
            np.testing.assert_array_equal(read_image(path), expected["img"])


def test_other_options_of_mmcv_are_kept(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(PIXELS, "PNG"))
    for options in (
        dict(to_float32=True),
        dict(color_type="grayscale"),
        dict(imdecode_backend="pillow"),
        dict(color_type="unchanged"),
    ):
        got = LoadImage(**options).transform(dict(img_path=str(path)))
        expected = LoadImageFromFile(**options).transform(dict(img_path=str(path)))
        assert got["img"].dtype == expected["img"].dtype
        np.testing.assert_array_equal(got["img"], expected["img"])
    assert LoadImage(ignore_empty=True).transform(dict(img_path=str(tmp_path / "none"))) is None


def test_orientation_that_opencv_does_not_see(tmp_path):
    """Of XMP alone, or in damaged EXIF: Pillow reports it, the decoder does not apply it."""
    path = tmp_path / "image.jpg"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
    for options in (dict(xmp=xmp), dict(exif=exif(6).tobytes()[:20])):
        path.write_bytes(encoded(PIXELS, "JPEG", **options))
        height, width = read_image(path).shape[:2]
        assert image_size(path) == (width, height) == (64, 40)


JPEGS = {
    "baseline": dict(),
    "progressive": dict(progressive=True),
    "restarts": dict(restart_marker_blocks=2),
    "thumbnail": dict(exif=b"Exif\0\0" + encoded(PIXELS[::2, ::2].copy(), "JPEG")[:3000]),
}


@pytest.mark.parametrize("name", [*JPEGS, "PNG", "animated PNG"])
def test_whole_or_cut_off(name, tmp_path):
    """Whatever follows its end, an image is whole; cut anywhere before, it is not."""
    path = tmp_path / "image"
    if name in JPEGS:
        whole = encoded(PIXELS, "JPEG", quality=80, **JPEGS[name])
    else:
        whole = with_orientation("PNG", 1, 2 if "animated" in name else 1)
    for addition in (b"", b"\0" * 9, b"video" * 4000, whole[: len(whole) // 2], b"\xff\xd8\xff"):
        path.write_bytes(whole + addition)
        assert read_header(path).upright == (64, 40)
        assert read_image(path).shape == (40, 64, 3)
    for cut in range(2, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:cut])
        with pytest.raises(OSError):
            read_header(path)
        for read in (image_size, read_image, lambda p: LoadImage().transform(dict(img_path=p))):
            with pytest.raises(UnreadableImage) as caught:
                read(path)
            assert caught.value.code == "bad-image" and caught.value.where == str(path)


def tiff(bands: int, bits: int, sample_format: int) -> bytes:
    """An uncompressed TIFF of 4 x 4 pixels, samples all 7 if they are bytes."""
    size = 16 * bands * bits // 8
    entries = [
        (256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, 4), (279, 4, 1, size),
        (339, 3, 1, sample_format),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHI", *e[:3]) + struct.pack("<I", e[3]) for e in entries)
    table = struct.pack("<H", len(entries)) + table + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + size) + b"\7" * size + table


@pytest.mark.parametrize(
    "bands, bits, sample_format, words",
    [(1, 32, 3, "32-bit float"), (1, 64, 3, "64-bit float"), (5, 8, 1, "5 bands"),
     (12, 16, 1, "12 bands"), (1, 32, 1, "32-bit samples")],
)  # fmt: skip
def test_tiffs_that_are_not_decoded(bands, bits, sample_format, words, tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff(bands, bits, sample_format))
    for read in (image_size, read_image, lambda p: LoadImage().transform(dict(img_path=p))):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        assert caught.value.code == "bad-image"
        assert "scan.tif" in str(caught.value) and words in str(caught.value)
    headers, (issue,) = read_headers([path])
    assert not headers and issue.severity == "error" and words in issue.text


@pytest.mark.parametrize("bands, bits", [(1, 8), (1, 16)])
def test_tiffs_that_are_decoded(bands, bits, tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff(bands, bits, 1))
    assert (read_image(path) == 7).all()
    assert image_size(path) == (4, 4)


def test_beyond_pillows_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(PIXELS, "PNG"))
    assert image_size(path) == (64, 40)
    assert read_label_map(path).shape == (40, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_label_maps_are_as_stored(tmp_path):
    path = tmp_path / "labels.png"
    labels = RNG.integers(0, 9, (40, 64), np.uint8)
    path.write_bytes(encoded(labels, "PNG", exif=exif(6)))
    np.testing.assert_array_equal(read_label_map(path), labels)
    assert cv2.imread(str(path)).shape[:2] == (64, 40)  # why it is not read so
