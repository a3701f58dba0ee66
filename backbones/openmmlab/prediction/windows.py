"""Predict a raster in windows read from its file, and write a label map of any size."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backbones.atomic_write import atomic_path, write_atomically
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.rasters import Raster
from backbones.packages import require

from .instances import Instances

GEO_KEYS, PIXEL_SCALE, TIEPOINT, MATRIX = 34735, 33550, 33922, 34264  # GeoTIFF tags
PROJECTED, GEOGRAPHIC, USER_DEFINED = 3072, 2048, 32767  # GeoTIFF keys, and the value for no code


class WindowedImage:
    """Read parts of an open raster as if it were an array (H, W, bands); see `Bands.read`.

    Args:
        raster: the file.
        bands: bands to read.
        keep_missing: keep where the pixels of each part are missing, until `missing` is asked for
            a part behind it.

    Attributes:
        has_data: whether any part that was read holds a value that is not missing.
    """

    def __init__(self, raster: Raster, bands: Bands, keep_missing: bool = False):
        self.raster, self.bands, self.keep_missing = raster, bands, keep_missing
        self.shape = (raster.height, raster.width, len(bands.chosen))
        self.has_data = False
        self._read: list[tuple[slice, slice, np.ndarray]] = []

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray | None:
        """Return the pixels (h, w, bands) of a part; None if no band of it holds data."""
        rows, columns = part
        window = (columns.start, rows.start, columns.stop, rows.stop)
        unwritten = self.raster.unwritten_value(window)
        if unwritten is not None and self.bands.is_missing(unwritten):
            return None
        pixels, lacking = self.bands.read(self.raster, window)
        if lacking.all():
            return None
        self.has_data = True
        if self.keep_missing:
            self._read.append((rows, columns, np.asarray(lacking.any(-1))))
        return pixels

    def missing(self, part: tuple[slice, slice]) -> np.ndarray:
        """Return where the pixels of a part (h, w) are missing in any band, or were not read.

        Parts are asked for along the image's longer side: what is behind is forgotten.
        """
        rows, columns = part
        along = int(self.shape[1] > self.shape[0])
        self._read = [one for one in self._read if one[:2][along].stop > part[along].start]
        missing = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        for other_rows, other_columns, found in self._read:
            top, bottom = max(rows.start, other_rows.start), min(rows.stop, other_rows.stop)
            left = max(columns.start, other_columns.start)
            right = min(columns.stop, other_columns.stop)
            if top < bottom and left < right:
                missing[
                    top - rows.start : bottom - rows.start,
                    left - columns.start : right - columns.start,
                ] = found[
                    top - other_rows.start : bottom - other_rows.start,
                    left - other_columns.start : right - other_columns.start,
                ]
        return missing


class LabelFile:
    """Write the parts of a label map into an uncompressed TIFF; memory holds one part.

    Args:
        path: the file, already of its size.
        shape: (H, W).
        dtype: of the labels.
        offset: of the first label in the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: type, offset: int):
        self.path, self.shape, self.dtype, self.offset = path, shape, dtype, offset
        self.ignored = int(np.iinfo(dtype).max)

    def __setitem__(self, part: tuple[slice, slice], labels: np.ndarray | int) -> None:
        # Mapped anew for each part: pages that are written do not stay in this process.
        mapped = np.memmap(self.path, self.dtype, "r+", self.offset, self.shape)
        mapped[part] = labels
        del mapped


@contextmanager
def label_file(path: Path, raster: Raster, classes: int) -> Iterator[LabelFile]:
    """Open a label map of a raster, with its georeference; it appears when all of it is written.

    Labels are uint8, or uint16 from 256 classes; the largest value of the dtype marks missing
    pixels, and GDAL reads it as nodata.
    """
    require("label maps as TIFF", "tifffile")
    import tifffile  # an optional dependency

    dtype = np.uint8 if classes <= 255 else np.uint16
    shape = (raster.height, raster.width)
    nodata = str(np.iinfo(dtype).max)
    tags = [(*tag, True) for tag in raster.georeference] + [(42113, "s", 0, nodata, True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        with tifffile.TiffWriter(part, bigtiff=shape[0] * shape[1] > 2**31) as writer:
            offset, _ = writer.write(
                shape=shape, dtype=dtype, data=None, photometric="minisblack", extratags=tags,
                returnoffset=True, metadata=None, contiguous=True,
            )  # fmt: skip
        yield LabelFile(part, shape, dtype, offset)


def write_geojson(path: Path, found: Instances, classes: tuple[str, ...], raster: Raster) -> bool:
    """Write a detector's boxes as polygons in the raster's coordinates; False if it has none."""
    tags = {code: value for code, _, _, value in raster.georeference}
    matrix = affine(tags)
    if matrix is None:
        return False
    features = []
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        left, top, right, bottom = map(float, box)
        corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
        ring = [(matrix @ (x, y, 1.0)).tolist() for x, y in corners]
        features.append(
            dict(
                type="Feature",
                geometry=dict(type="Polygon", coordinates=[ring]),
                properties={"class": classes[int(label)], "score": float(score)},
            )
        )
    content: dict[str, Any] = dict(type="FeatureCollection", features=features)
    if code := epsg(tags):
        content["crs"] = dict(type="name", properties=dict(name=f"urn:ogc:def:crs:EPSG::{code}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))
    return True


def affine(tags: dict[int, Any]) -> np.ndarray | None:
    """Return the (2, 3) matrix from pixels (x, y, 1) to coordinates of a GeoTIFF's tags."""
    if MATRIX in tags:
        values = np.array(tags[MATRIX], float).reshape(4, 4)
        return values[:2, [0, 1, 3]]
    if PIXEL_SCALE not in tags or TIEPOINT not in tags:
        return None
    scale_x, scale_y = tags[PIXEL_SCALE][:2]
    column, row, _, x, y, _ = tags[TIEPOINT][:6]
    return np.array([[scale_x, 0, x - column * scale_x], [0, -scale_y, y + row * scale_y]])


def epsg(tags: dict[int, Any]) -> int | None:
    """Return the EPSG code of a GeoTIFF's coordinates, if its keys state one."""
    keys = list(tags.get(GEO_KEYS) or ())
    stated: dict[int, Any] = {
        keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0
    }
    for key in (PROJECTED, GEOGRAPHIC):
        if stated.get(key, USER_DEFINED) not in (0, USER_DEFINED):
            return int(stated[key])
    return None
