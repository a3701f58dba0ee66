"""Predict a raster in windows read from its file, and write a label map of any size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from backbones.atomic_write import atomic_path
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.rasters import Raster
from backbones.packages import require

from .georeference import Georeference


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


def ignoring_dtype(classes: int) -> type:
    """Return the dtype of label maps whose largest value marks missing pixels."""
    return np.uint8 if classes <= 255 else np.uint16


@contextmanager
def label_file(
    path: Path, shape: tuple[int, int], classes: int, place: Georeference
) -> Iterator[LabelFile]:
    """Open a label map (H, W) with a georeference; it appears when all of it is written.

    Labels are of `ignoring_dtype`, whose largest value marks missing pixels; GDAL reads it as
    nodata.
    """
    require("label maps as TIFF", "tifffile")
    import tifffile  # an optional dependency

    dtype = ignoring_dtype(classes)
    nodata = str(np.iinfo(dtype).max)
    tags = [(*tag, True) for tag in place.tags] + [(42113, "s", 0, nodata, True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        with tifffile.TiffWriter(part, bigtiff=shape[0] * shape[1] > 2**31) as writer:
            offset, _ = writer.write(
                shape=shape, dtype=dtype, data=None, photometric="minisblack", extratags=tags,
                returnoffset=True, metadata=None, contiguous=True,
            )  # fmt: skip
        yield LabelFile(part, shape, dtype, offset)
