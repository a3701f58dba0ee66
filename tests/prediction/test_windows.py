"""Rasters read in windows: the labels of the whole, their place, and memory bounded by the tile."""

import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from PIL import Image
from support.drawn_bands import draw_bands
from support.small_runs import write_config

from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.data.bands import read_bands
from backbones.openmmlab.data.rasters import open_raster
from backbones.openmmlab.data.rasters.tiff import TiffRaster
from backbones.openmmlab.prediction.batches import predict_files
from backbones.openmmlab.prediction.blending import spread
from backbones.openmmlab.prediction.instances import Instances
from backbones.openmmlab.prediction.predictions import PredictionFiles
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.tiles import TiledPredictor
from backbones.openmmlab.registration import enter_scope

PLACE = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
]


def random_model(folder: Path, task: str) -> Predictor:
    """A model of four bands with random weights, as `--data` resolves its config."""
    layout = dict(segmentation="labels", detection="coco")[task]
    root = draw_bands(folder / "set", 4, "uint16", 3, images=2, layout=layout)
    (root / "bands.json").write_text(json.dumps(dict(nodata=0)))
    path = write_config(folder, task)
    config: Config = prepare(Options(path, data=root, work_dir=folder / "run"), "inspect")
    config.test_dataloader.dataset.pipeline[1] = ConfigDict(type="Resize", scale_factor=1.0)
    if task == "detection":  # whatever the draw, boxes are found
        config.model.test_cfg.rcnn.update(score_thr=-1.0, max_per_img=10)
    torch.manual_seed(0)
    enter_scope(config.default_scope)
    model = MODELS.build(config.model)
    for part in ("decode_head", "rpn_head", "roi_head"):
        for parameter in getattr(model, part).parameters() if hasattr(model, part) else ():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), folder / "random.pth")
    return Predictor(config, folder / "random.pth", device="cpu")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return random_model(tmp_path_factory.mktemp("segmentor"), "segmentation")


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Predictor:
    return random_model(tmp_path_factory.mktemp("detector"), "detection")


def written(predictor: Predictor, path: Path, tile: int | None, overlap: int = 16) -> Path:
    """Predict a file; return the folder of what is written."""
    out = path.parent / f"out{tile or ''}"
    tiled = None if tile is None else TiledPredictor(predictor, tile, overlap)
    assert predict_files(predictor, tiled, 1, PredictionFiles(out, predictor, 0.5), [path]) == []
    return out


def predicted(predictor: Predictor, path: Path, tile: int, overlap: int) -> np.ndarray:
    out = written(predictor, path, tile, overlap)
    return tifffile.memmap(out / "labels" / f"{path.stem}.tif", mode="r")


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_labels_are_those_of_the_whole(shape, predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 4000, (*shape, 4), np.uint16)
    pixels[10:20, 30:50, 2] = 0  # nodata
    path = tmp_path / "scene.tif"
    tifffile.imwrite(
        path, pixels, tile=(32, 32), photometric="minisblack", planarconfig="contig",
        extratags=PLACE,
    )  # fmt: skip
    whole = TiledPredictor(predictor, 64, 16)(predictor.read(path))
    assert isinstance(whole, np.ndarray) and len(np.unique(whole)) == 2
    labels = predicted(predictor, path, 64, 16)
    lacking = (pixels == 0).any(-1)
    np.testing.assert_array_equal(labels, np.where(lacking, 255, whole))
    with open_raster(path) as given, open_raster(tmp_path / "out64/labels/scene.tif") as found:
        assert found.georeference == given.georeference and found.nodata == 255


@pytest.mark.parametrize("turned", [0, 30])
def test_what_gdal_alone_reads_keeps_its_place(turned, predictor, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 64, 96), np.uint16)
    place = rasterio.Affine.translation(500000, 4600000) @ rasterio.Affine.scale(10, -20)
    place = place @ rasterio.Affine.rotation(turned)
    shape = dict(height=64, width=96, count=4, dtype="uint16", crs="EPSG:32633", transform=place)
    with rasterio.open(tmp_path / "scene.img", "w", driver="HFA", **shape) as file:
        file.write(pixels)
    path = (tmp_path / "scene.img").rename(tmp_path / "scene.jp2")
    labels = predicted(predictor, path, 64, 16)
    assert len(np.unique(labels)) == 2
    with rasterio.open(tmp_path / "out64" / "labels" / "scene.tif") as found:
        assert found.transform.almost_equals(place) and found.crs.to_epsg() == 32633
        np.testing.assert_array_equal(found.read(1), labels)


def write_sparse(path: Path, pixels: np.ndarray, nodata: str | None) -> None:
    """Write tiles of 32 pixels, in the left half only those that are not all zeros."""
    height, width = (side // 32 for side in pixels.shape[:2])
    blocks = pixels.reshape(height, 32, width, 32, 4).swapaxes(1, 2)
    stored = [
        b"" if column < width // 2 and not blocks[row, column].any()
        else zlib.compress(blocks[row, column].tobytes())
        for row, column in np.ndindex(height, width)
    ]  # fmt: skip
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(stored), shape=pixels.shape, dtype=pixels.dtype, tile=(32, 32),
            photometric="minisblack", planarconfig="contig", compression="zlib", extratags=tags,
        )  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("stated", [None, "7"])
def test_tiles_without_data_are_not_predicted(stated, turned, predictor, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(1, 4000, (96, 384, 4), np.uint16)
    pixels[:, 32:160] = pixels[:64, 224:320] = 0
    if turned:
        pixels = np.ascontiguousarray(pixels.swapaxes(0, 1))
    path = tmp_path / "scene.tif"
    write_sparse(path, pixels, stated)
    whole = TiledPredictor(predictor, 64, 16)(predictor.read(path))
    assert predictor.bands is not None and predictor.bands.nodata == 0
    lacking = read_bands(path, predictor.bands)[1]
    # Tiles that were never written have the value that the file states, which may be data.
    assert lacking.mean() > (0.4 if stated is None else 0.1)
    counted, batch = [], predictor.batch
    monkeypatch.setattr(predictor, "batch", lambda images: counted.append(images) or batch(images))
    labels = predicted(predictor, path, 64, 16)
    np.testing.assert_array_equal(labels, np.where(lacking, 255, whole))
    assert len(np.unique(labels)) == 3
    tiles = [
        lacking[top:bottom, left:right]
        for top, bottom in spread(lacking.shape[0], 64, 16)
        for left, right in spread(lacking.shape[1], 64, 16)
    ]
    assert len(counted) == sum(not tile.all() for tile in tiles) < len(tiles)


def test_a_raster_without_data_is_refused(predictor, tmp_path):
    write_sparse(tmp_path / "scene.tif", np.zeros((96, 160, 4), np.uint16), None)
    files = PredictionFiles(tmp_path / "out", predictor, 0.5)
    tiled = TiledPredictor(predictor, 64, 16)
    (refused,) = predict_files(predictor, tiled, 1, files, [tmp_path / "scene.tif"])
    assert "scene.tif" in refused and not list(tmp_path.rglob("out/labels/*"))


def test_each_tile_is_read_once(predictor, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(1, 4000, (96, 160, 4), np.uint16)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    windows, read = [], TiffRaster.read

    def noted(raster, bands, window):
        windows.append(window)
        return read(raster, bands, window)

    monkeypatch.setattr(TiffRaster, "read", noted)
    predicted(predictor, path, 64, 16)
    assert len(windows) == len(set(windows)) == 2 * 3


def test_the_demo_page_shows_the_composite(predictor, tmp_path):
    pytest.importorskip("gradio")
    from backbones.openmmlab.prediction.demo_page import demo_page

    pixels = np.random.default_rng(0).integers(1, 4000, (64, 64, 4), np.uint16)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    page = demo_page(predictor, "bands", 0.5)
    (predict,) = (f.fn for f in page.fns.values() if f.name == "predict")
    (shown, labels), _, text, stages = predict(str(path), 0.5)
    np.testing.assert_array_equal(shown, predictor.picture(predictor.read(path)))
    assert shown.dtype == np.uint8 and shown.std() > 30
    assert labels.shape == (64, 64) and len(stages) == 4 and "class" in text


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_memory_is_bounded_by_the_tile(task, predictor, detector, tmp_path):
    """40,000 x 40,000 x 4 uint16, 12.8 GB as an array, of which one block is written."""
    path, side, block = tmp_path / "scene.tif", 40_000, 512
    across = -(-side // block)
    content = np.random.default_rng(0).integers(1, 4000, (block, block, 4), np.uint16)
    blocks = [b""] * across**2
    blocks[across * 3 + 5] = zlib.compress(content.tobytes(), 1)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            iter(blocks), shape=(side, side, 4), dtype=np.uint16, tile=(block, block),
            photometric="minisblack", planarconfig="contig", compression="zlib", extratags=PLACE,
        )  # fmt: skip
    model = dict(segmentation=predictor, detection=detector)[task]
    tracemalloc.start()
    out = written(model, path, 1024, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    if task == "segmentation":
        labels = tifffile.memmap(out / "labels" / "scene.tif", mode="r")
        rows, columns = slice(3 * block, 4 * block), slice(5 * block, 6 * block)
        assert (labels[rows, columns] < 2).all()
        assert (labels[3 * block - 1] == 255).all() and (labels[:, 6 * block] == 255).all()
    else:
        found = json.loads((out / "predictions.json").read_text())
        (image,) = found["images"]
        assert (image["width"], image["height"], image["crs"]) == (side, side, "EPSG:32633")
        boxes = np.array([row["bbox"] for row in found["annotations"]])
        # Tiles are 1024 wide: those that meet the block lie within this of it.
        assert len(boxes) and (np.abs(boxes[:, 0] - 5.5 * block) < 1024 + block).all()
        assert (np.abs(boxes[:, 1] - 3.5 * block) < 1024 + block).all()


def test_instances_are_those_of_the_whole(detector, tmp_path):
    """Windows of a file and parts of an array give the same, across seams too."""
    pixels = np.random.default_rng(0).integers(1, 4000, (96, 160, 4), np.uint16)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="minisblack", planarconfig="contig")
    whole = TiledPredictor(detector, 64, 16)(detector.read(path))
    assert isinstance(whole, Instances) and len(whole) > 10 and (whole.boxes[:, 2] > 70).any()
    content = json.loads((written(detector, path, 64) / "predictions.json").read_text())
    np.testing.assert_array_equal([row["score"] for row in content["annotations"]], whole.scores)
    left, top, width, height = np.array([row["bbox"] for row in content["annotations"]]).T
    np.testing.assert_allclose(np.stack([left, top, left + width, top + height], 1), whole.boxes)
    assert content["images"][0].keys() == {"id", "file_name", "width", "height"}


WARPED = "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +datum=WGS84"


@pytest.mark.parametrize(
    ("crs", "turned", "kind"),
    [
        ("EPSG:32633", 0, "Area"),
        ("EPSG:32633", 30, "Point"),
        ("EPSG:4326", 0, "Point"),
        (None, 0, "Area"),
        (WARPED, 0, "Area"),
    ],
)
def test_predictions_are_placed_as_gdal_places_their_raster(crs, turned, kind, detector, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 64, 96), np.uint16)
    place = rasterio.Affine.translation(500000, 4600000) @ rasterio.Affine.scale(10, -20)
    place = place @ rasterio.Affine.rotation(turned)
    shape = dict(height=64, width=96, count=4, dtype="uint16", crs=crs, transform=place)
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.update_tags(AREA_OR_POINT=kind)
        file.write(pixels)
    with rasterio.open(path) as file:
        place, code = file.transform, file.crs and file.crs.to_epsg()
        assert code == {"EPSG:32633": 32633, "EPSG:4326": 4326}.get(crs)
    for tile in (None, 64):
        out = written(detector, path, tile)
        content = json.loads((out / "predictions.json").read_text())
        (image,) = content["images"]
        np.testing.assert_allclose(image["transform"], tuple(place)[:6], rtol=1e-12)
        assert image.get("crs") == (code and f"EPSG:{code}")
        shapes = json.loads((out / "vectors" / "scene.geojson").read_text())
        name = shapes.get("crs", dict(properties=dict(name=None)))["properties"]["name"]
        assert name == (code and f"urn:ogc:def:crs:EPSG::{code}")
        assert len(shapes["features"]) == len(content["annotations"]) > 0
        for row, feature in zip(content["annotations"], shapes["features"], strict=True):
            x, y, width, height = row["bbox"]
            ring = feature["geometry"]["coordinates"][0]
            np.testing.assert_allclose(ring[0], place @ (x, y), rtol=1e-9)
            np.testing.assert_allclose(ring[2], place @ (x + width, y + height), rtol=1e-9)
            assert ring[0] == ring[-1] and len(ring) == 5
            properties = feature["properties"]
            assert properties == {"class": "square", "score": row["score"]}


def test_label_maps_of_whole_rasters_have_their_place(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 4000, (64, 96, 4), np.uint16)
    pixels[10:20, 30:50, 2] = 0  # nodata
    path = tmp_path / "scene.tif"
    options = dict(photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(path, pixels, **options, extratags=PLACE)
    found = written(predictor, path, None) / "labels" / "scene.tif"
    tifffile.imwrite(tmp_path / "other.tif", pixels, **options)
    placeless = written(predictor, tmp_path / "other.tif", None) / "labels" / "other.png"
    labels = predictor(path).found
    expected = np.where((pixels == 0).any(-1), 255, labels)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(tifffile.imread(found), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(placeless)), expected)
    with open_raster(path) as given, open_raster(found) as raster:
        assert raster.georeference == given.georeference and raster.nodata == 255
