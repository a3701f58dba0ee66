"""Draw small rasters whose class is visible in one of their bands alone."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SIDE = 64


def draw_bands(
    root: Path, bands: int, dtype: str, told_by: int, images: int = 12, names: tuple = ()
) -> Path:
    """Draw a data set of a square on ground, in the layout of images and label maps.

    Args:
        root: created folder.
        bands: number of bands.
        dtype: `uint16` has values around 2000 of 10000, floats around 0.2.
        told_by: band, from 0, in which the square is brighter; all others are noise of one kind.
        images: number of each split.
        names: descriptions of the bands that GDAL would write.
    """
    rng = np.random.default_rng(bands)
    scale = 10000 if np.dtype(dtype).kind == "u" else 1.0
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(names)
    )
    tag = f"<GDALMetadata>{items}</GDALMetadata>"
    extra = [(42112, "s", 0, tag, True)] if names else []
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            pixels = rng.normal(0.2, 0.05, (SIDE, SIDE, bands))
            labels = np.zeros((SIDE, SIDE), np.uint8)
            left, top = rng.integers(0, SIDE // 2, 2)
            labels[top : top + SIDE // 2, left : left + SIDE // 2] = 1
            pixels[..., told_by] += 0.4 * labels
            stored = (pixels.clip(0.001, 1) * scale).astype(dtype)
            tifffile.imwrite(
                root / "images" / split / f"{number}.tif",
                stored if bands > 1 else stored[..., 0],
                photometric="minisblack", planarconfig="contig" if bands > 1 else None,
                extratags=extra,
            )  # fmt: skip
            Image.fromarray(labels).save(root / "labels" / split / f"{number}.png")
    (root / "classes.txt").write_text("ground\nsquare\n")
    return root
