"""Read what GDAL reads by rasterio; imported only where it is installed."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
import tifffile
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as GdalWindow

from .raster import Window, holds, unreadable
from .tiff import georeference_of


class GdalRaster:
    """Read windows of a raster that GDAL opens, such as JPEG 2000 or ERDAS; see `Raster`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = rasterio.open(path)
        except RasterioError as error:
            text = next(iter(str(error).splitlines()), "")
            raise unreadable(path, f"not an image ({text})") from None
        self.height, self.width, self.count = self.file.height, self.file.width, self.file.count
        kinds = dict.fromkeys(self.file.dtypes)
        values = dict.fromkeys(map(str, self.file.nodatavals))  # NaN is not equal to NaN
        for what, found in (("types", kinds), ("nodata values", values)):
            if len(found) > 1:
                text = ", ".join(found)
                self.close()
                raise unreadable(path, f"bands of several {what} ({text}); write them alike")
        (kind,) = kinds
        if kind.startswith("complex"):
            self.close()
            raise unreadable(path, f"holds {kind}; images hold integers or floats")
        self.dtype = np.dtype(kind)
        given = self.file.descriptions
        self.names = tuple(map(str, given)) if all(given) and len(set(given)) == len(given) else ()
        stated = self.file.nodata
        self.nodata = stated if stated is not None and holds(self.dtype, stated) else None
        self.georeference = self._georeference()

    def _georeference(self) -> list[tuple[int, Any, int, Any]]:
        """Return the TIFF tags that GDAL writes for this file's place."""
        crs, transform = self.file.crs, self.file.transform
        if crs is None and transform.is_identity:
            return []
        shape: dict[str, Any] = dict(driver="GTiff", height=1, width=1, count=1, dtype="uint8")
        with MemoryFile() as memory:
            with memory.open(**shape, crs=crs, transform=transform):
                pass
            with tifffile.TiffFile(BytesIO(memory.read())) as tiff:
                return georeference_of(tiff.pages[0])

    def read(self, bands: Sequence[int], window: Window) -> np.ndarray:
        left, top, right, bottom = window
        place: Any = cast(Any, GdalWindow)(left, top, right - left, bottom - top)
        try:
            pixels = self.file.read([band + 1 for band in bands], window=place)
        except RasterioError as error:
            text = next(iter(str(error).splitlines()), "")
            raise unreadable(self.path, f"damaged ({text})") from None
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def unwritten_value(self, window: Window) -> float | None:
        return None

    def close(self) -> None:
        self.file.close()
