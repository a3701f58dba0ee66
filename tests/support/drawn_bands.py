"""Draw small rasters whose class is visible in one of their bands alone."""

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SIDE = 64
NAMES = {
    1: ("grey",),
    4: ("blue", "green", "red", "nir"),
    13: (
        "coastal", "blue", "green", "red", "edge1", "edge2", "edge3", "nir", "nir2", "vapour",
        "cirrus", "swir1", "swir2",
    ),
}  # fmt: skip
TOLD_BY = {1: 0, 4: 3, 13: 11}  # band of the class


def draw_bands(
    root: Path,
    bands: int,
    dtype: str,
    told_by: int,
    images: int = 12,
    names: tuple = (),
    layout: str = "labels",
) -> Path:
    """Draw a data set of a square on ground.

    Args:
        root: created folder.
        bands: number of bands.
        dtype: `uint16` has values around 2000 of 10000, `uint8` around 51, floats around 0.2.
        told_by: band, from 0, in which the square is brighter; all others are noise of one kind.
        images: number of each split.
        names: descriptions of the bands that GDAL would write.
        layout: `labels` for images and label maps, `coco` for boxes in COCO's layout, `folders` for
            a folder of images with a square and one of images without.
    """
    rng = np.random.default_rng(bands)
    tag = gdal_names(names)
    for split in ("train", "val"):
        rows: dict[str, list] = dict(images=[], annotations=[])
        for number in range(images):
            half = SIDE // 2
            side = half if layout == "labels" else int(rng.integers(SIDE // 4, half + 1))
            left, top = map(int, rng.integers(0, SIDE - side + 1, 2))
            labels = np.zeros((SIDE, SIDE), np.uint8)
            if layout != "folders" or number % 2:
                labels[top : top + side, left : left + side] = 1
            pixels = rng.normal(0.2, 0.05, (SIDE, SIDE, bands))
            pixels[..., told_by] += 0.4 * labels
            path = root / _folder(layout, split, number % 2) / f"{number}.tif"
            write_tiff(path, as_dtype(pixels, dtype), tag)
            if layout == "labels":
                path = root / "labels" / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).save(path)
            rows["images"].append(dict(id=number + 1, file_name=path.name, width=SIDE, height=SIDE))
            rows["annotations"].append(
                dict(
                    id=number + 1, image_id=number + 1, category_id=1, area=side * side, iscrowd=0,
                    bbox=[left, top, side, side],
                )
            )  # fmt: skip
        if layout == "coco":
            path = root / "annotations" / f"instances_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**rows, "categories": [dict(id=1, name="square")]}))
    if layout == "labels":
        (root / "classes.txt").write_text("ground\nsquare\n")
    return root


def as_dtype(pixels: np.ndarray, dtype: str) -> np.ndarray:
    """Return values of [0, 1] in a dtype's range; 0 is kept free for nodata."""
    scale = {"uint8": 255, "uint16": 10000}.get(dtype, 1.0)
    low = 1 / scale if scale != 1.0 else 0.001
    return (pixels.clip(low, 1) * scale).astype(dtype)


def gdal_names(names: tuple) -> list:
    """Return the TIFF tag in which GDAL stores descriptions of bands."""
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(names)
    )
    return [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)] if names else []


def write_tiff(path: Path, pixels: np.ndarray, tags: list | None = None) -> Path:
    """Write an image (H, W, bands), its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    has_bands = pixels.shape[2] > 1
    tifffile.imwrite(
        path,
        pixels if has_bands else pixels[..., 0],
        photometric="minisblack", planarconfig="contig" if has_bands else None,
        extratags=tags or [],
    )  # fmt: skip
    return path


def _folder(layout: str, split: str, square: int) -> Path:
    if layout == "folders":
        return Path("classes", split, ("ground", "square")[square])
    return Path(split) if layout == "coco" else Path("images", split)
