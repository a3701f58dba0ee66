"""Read windows of TIFF, BigTIFF and GeoTIFF files through tifffile's decoders."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from backbones.openmmlab.data.files import one_line

from .raster import LARGEST, Window, holds, unreadable

ORIENTATION, GDAL_METADATA, GDAL_NODATA = 274, 42112, 42113
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory and its two value tags.
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)
BANDS_FIRST = {"SYX", "CYX", "QYX", "IYX"}  # tifffile's names of axes
EXPANSION = 1.1  # a block that does not compress may exceed its own size by less than this


class TiffRaster:
    """Read the first image of a TIFF: tiled or in strips, bands interleaved, in planes or pages.

    Only the tiles or strips that a window meets are read and decoded. See `Raster`.
    """

    def __init__(self, path: Path):
        self.path = path
        with _unlogged():
            self.file = tifffile.TiffFile(path)
        try:
            with _unlogged():
                self._describe()
        except BaseException:
            self.close()
            raise

    def _describe(self) -> None:
        series, *others = self.file.series
        # Beside overviews and masks, which are of other sizes or of one bit.
        kind = (series.shape, series.dtype)
        if number := sum((one.shape, one.dtype) == kind for one in others):
            raise unreadable(self.path, f"TIFF of {number + 1} images; write one file for each")
        kept = [i for i, size in enumerate(series.shape) if size != 1 or series.axes[i] in "YX"]
        axes = "".join(series.axes[i] for i in kept)
        if axes not in {"YX", "YXS", *BANDS_FIRST}:
            raise unreadable(self.path, f"TIFF of axes {series.axes}; images have Y, X and bands")
        self.pages: list[Any] = [page for page in series.pages if page is not None]
        page: Any = series.keyframe
        self.height, self.width = page.imagelength, page.imagewidth
        self.count = page.samplesperpixel * len(self.pages)
        if page.dtype is None or page.dtype.kind not in "uif":
            raise unreadable(
                self.path, f"TIFF of {page.bitspersample}-bit samples of no known kind"
            )
        self.dtype = page.dtype
        if page.tags.valueof(ORIENTATION, 1) != 1:
            raise unreadable(self.path, "TIFF with an orientation; store its rows from the top")
        self.names = self._names(page)
        self.nodata = _nodata(page.tags.valueof(GDAL_NODATA), self.dtype)
        self._fill = self.nodata or 0.0  # of blocks that were never written
        self.georeference = georeference_of(page)
        length = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        width = page.tilewidth if page.is_tiled else page.imagewidth
        self._block = (length, width)
        self._across = -(-page.imagewidth // width)
        self._down = -(-page.imagelength // length)
        # Bands in planes of their own, or all in one block.
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        if length * width * page.samplesperpixel // self._planes > LARGEST:
            raise unreadable(
                self.path, f"TIFF in blocks of {width} x {length} pixels; write it in tiles"
            )
        for each in self.pages:
            self._check_offsets(each)

    def _names(self, page: Any) -> tuple[str, ...]:
        """Return the descriptions that GDAL stores, if every band has one."""
        text = page.tags.valueof(GDAL_METADATA)
        try:
            items = ElementTree.fromstring(text) if text else ()
        except (ElementTree.ParseError, TypeError, ValueError):
            return ()
        found = {
            item.get("sample"): (item.text or "").strip()
            for item in items
            if item.get("role") == "description"
        }
        names = tuple(found.get(str(i), "") for i in range(self.count))
        return names if all(names) and len(set(names)) == self.count else ()

    def _check_offsets(self, page: Any) -> None:
        size, blocks = self.file.filehandle.size, self._across * self._down * self._planes
        offsets = np.asarray(page.dataoffsets, np.uint64)
        counts = np.asarray(page.databytecounts, np.uint64)
        if len(offsets) < blocks or len(counts) < blocks or (offsets + counts > size).any():
            raise unreadable(self.path, "TIFF cut off")

    def read(self, bands: Sequence[int], window: Window) -> np.ndarray:
        left, top, right, bottom = window
        out = np.zeros((bottom - top, right - left, len(bands)), self.dtype)
        samples = self.count // len(self.pages)
        for page_number, page in enumerate(self.pages):
            first = page_number * samples
            for plane in range(self._planes):
                held = range(first, first + samples) if self._planes == 1 else [first + plane]
                wanted = [(i, held.index(band)) for i, band in enumerate(bands) if band in held]
                if not wanted:
                    continue
                for y, x, block in self._blocks(page, plane, window):
                    at = max(y, top), max(x, left)
                    end = min(y + block.shape[0], bottom), min(x + block.shape[1], right)
                    part = block[at[0] - y : end[0] - y, at[1] - x : end[1] - x]
                    rows, columns = (
                        slice(at[0] - top, end[0] - top),
                        slice(at[1] - left, end[1] - left),
                    )
                    for i, sample in wanted:
                        out[rows, columns, i] = part[..., sample]
        return out

    def unwritten_value(self, window: Window) -> float | None:
        left, top, right, bottom = window
        length, width = self._block
        for page in self.pages:
            counts = page.databytecounts
            for plane in range(self._planes):
                for row in range(top // length, -(-bottom // length)):
                    start = (plane * self._down + row) * self._across
                    if any(counts[start + left // width : start + -(-right // width)]):
                        return None
        return self._fill

    def _blocks(
        self, page: Any, plane: int, window: Window
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (top, left, pixels) of the blocks that meet a window, but unwritten ones."""
        left, top, right, bottom = window
        length, width = self._block
        for row in range(top // length, -(-bottom // length)):
            for column in range(left // width, -(-right // width)):
                index = (plane * self._down + row) * self._across + column
                stored = page.databytecounts[index]
                if not stored or not page.dataoffsets[index]:
                    if self._fill:
                        yield row * length, column * width, self._unwritten(page)
                    continue
                yield row * length, column * width, self._decoded(page, index, stored)

    def _unwritten(self, page: Any) -> np.ndarray:
        samples = page.keyframe.samplesperpixel // self._planes
        return np.full((*self._block, samples), self._fill, self.dtype)

    def _decoded(self, page: Any, index: int, stored: int) -> np.ndarray:
        samples = page.keyframe.samplesperpixel // self._planes
        size = self._block[0] * self._block[1] * samples * self.dtype.itemsize
        if stored > EXPANSION * size + 4096:  # what bounds the memory of any decoder
            raise unreadable(self.path, "TIFF whose blocks hold more than their pixels; damaged")
        self.file.filehandle.seek(page.dataoffsets[index])
        content = self.file.filehandle.read(stored)
        try:
            tables = page.jpegtables
            pixels = page.decode(content, index, jpegtables=tables)[0][0]
        except Exception as error:  # a damaged block may fail anywhere in a decoder
            text = next(iter(str(error).splitlines()), "")
            if "imagecodecs" in text:
                compression = page.keyframe.compression
                name = getattr(compression, "name", compression)
                reason = (
                    f"TIFF compressed by {name}, which needs a package; pip install imagecodecs"
                )
                raise unreadable(self.path, reason) from None
            raise unreadable(self.path, f"TIFF damaged ({one_line(text)})") from None
        if pixels is None:
            raise unreadable(self.path, "TIFF damaged")
        return pixels

    def close(self) -> None:
        self.file.close()


def georeference_of(page: Any) -> list[tuple[int, Any, int, Any]]:
    """Return the tags of a TIFF's page that place it on the earth: (code, type, count, value)."""
    return [
        (tag.code, tag.dtype, tag.count, tag.value)
        for code in GEOREFERENCE
        if (tag := page.tags.get(code)) is not None
    ]


def _nodata(text: object, dtype: np.dtype) -> float | None:
    """Return the stated nodata value; None if there is none, or none that the dtype has."""
    try:
        value = float(str(text).strip().strip("\0").replace(",", "."))
    except ValueError:
        return None
    return value if holds(dtype, value) else None


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep tifffile from logging what this reader passes over or reports by itself."""
    logger = logging.getLogger("tifffile")
    former, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = former
