"""Define what every kind of raster file offers: its header, and windows of its bands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backbones.errors import UnreadableImage
from backbones.openmmlab.data.files import one_line

LARGEST = 2**28  # values that are read at once, 1 GiB as float32
Window = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are exclusive


class Raster(Protocol):
    """Read an open image file of any number of bands.

    Attributes:
        path: the file.
        height, width, count: rows, columns and bands.
        dtype: of the stored values.
        names: of the bands, in their order in the file; empty if it names none.
        nodata: value that stands for a missing one, of all bands; None if the file states none.
        georeference: TIFF tags (code, type, count, value) that place it on the earth.
    """

    path: Path
    height: int
    width: int
    count: int
    dtype: np.dtype
    names: tuple[str, ...]
    nodata: float | None
    georeference: list[tuple[int, Any, int, Any]]

    def read(self, bands: Sequence[int], window: Window) -> np.ndarray:
        """Return a window (h, w, bands) of these bands, by their index from 0, as stored.

        Raises:
            UnreadableImage: its part of the file is cut off or damaged.
        """
        ...

    def unwritten_value(self, window: Window) -> float | None:
        """Return the value of a window of which a sparse file stores nothing, None if it does."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class ArrayRaster:
    """Offer an array, in memory or mapped from a file, as a raster; see `Raster`."""

    def __init__(self, path: Path, pixels: np.ndarray, nodata: float | None = None):
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.ndim != 3 or 0 in pixels.shape:
            raise unreadable(path, f"an array of shape {pixels.shape}, not (H, W) or (H, W, bands)")
        self.path, self.pixels = path, pixels
        self.height, self.width, self.count = pixels.shape
        self.dtype = pixels.dtype.newbyteorder("=")
        self.names: tuple[str, ...] = ()
        self.nodata = nodata
        self.georeference: list[tuple[int, Any, int, Any]] = []

    def read(self, bands: Sequence[int], window: Window) -> np.ndarray:
        left, top, right, bottom = window
        part = self.pixels[top:bottom, left:right][..., list(bands)]
        return np.ascontiguousarray(part, self.dtype)

    def unwritten_value(self, window: Window) -> float | None:
        return None

    def close(self) -> None:
        pass


def holds(dtype: np.dtype, value: float) -> bool:
    """Return whether a dtype has a value; floats have any, as nearly as they can."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def unreadable(path: object, reason: str) -> UnreadableImage:
    """Return the error of a file that cannot be read."""
    return UnreadableImage(f"{one_line(path)}: {reason}", where=path)
