"""Open a raster by its kind of file."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np

from backbones.errors import InputError, UnreadableImage
from backbones.openmmlab.data.decoding import Header, read_header, reason_of
from backbones.openmmlab.data.decoding import image_size as colour_size
from backbones.openmmlab.data.files import RASTERS
from backbones.packages import require

from .raster import LARGEST, ArrayRaster, Raster, unreadable

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMPY, PNG, DICOM = b"\x93NUMPY", b"\x89PNG", b"DICM"
ORDINARY = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".avif")


@contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """Open an image file of any number of bands and depth.

    Bands of PNG and other ordinary images are in the order red, green, blue, alpha.

    Raises:
        UnreadableImage: it is missing, empty, cut off, damaged or of no known kind.
        InputError: the package that reads such files is not installed.
    """
    try:
        with closing(_opened(path)) as raster:
            yield raster
    except InputError:
        raise
    except OSError as error:
        reason = reason_of(error) if error.errno is not None else str(error)
        raise unreadable(path, reason) from None


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file as decoded, in 8-bit colour or by its bands.

    Raises:
        UnreadableImage: neither decoder reads it.
    """
    try:
        return colour_size(path)
    except UnreadableImage:
        if path.suffix.lower() not in (".tif", ".tiff", *RASTERS):
            raise
        try:
            return read_raster_header(path).size
        except OSError as error:
            raise unreadable(path, str(error)) from None


def read_raster_header(path: Path) -> Header:
    """Read size, bands and dtype of a raster without its pixels; the mode is like `4 x uint16`.

    Raises:
        OSError: it cannot be read; its text states why.
    """
    try:
        with open_raster(path) as raster:
            size = (raster.width, raster.height)
            return Header(size, size, f"{raster.count} x {raster.dtype}", False, False)
    except UnreadableImage as error:
        raise OSError(str(error).removeprefix(f"{path}: ")) from None


def _opened(path: Path) -> Raster:
    with path.open("rb") as file:
        start = file.read(132)
    if not start:
        raise unreadable(path, "empty")
    if start[:4] in TIFF:
        require("TIFF of several bands", "tifffile")
        from .tiff import TiffRaster  # an optional dependency

        try:
            return TiffRaster(path)
        except InputError:
            raise
        except Exception as error:  # a damaged file may fail anywhere in a reader
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise unreadable(path, f"TIFF damaged or cut off ({text})") from None
    if start.startswith(NUMPY):
        return _numpy(path)
    if start[128:] == DICOM or path.suffix.lower() == ".dcm":
        require("DICOM", "pydicom")
        from .dicom import read_dicom  # an optional dependency

        return read_dicom(path)
    if start[:4] == PNG or path.suffix.lower() in ORDINARY:
        return _ordinary(path)
    require(f"{path.name}: of a format that only GDAL may read", "rasterio", "tifffile")
    from .gdal import GdalRaster  # an optional dependency

    return GdalRaster(path)


def _numpy(path: Path) -> Raster:
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        text = next(iter(str(error).splitlines()), "")
        raise unreadable(path, f"NumPy array damaged or cut off ({text})") from None
    if pixels.dtype.kind not in "uif":
        raise unreadable(path, f"NumPy array of {pixels.dtype}; images hold integers or floats")
    return ArrayRaster(path, pixels)


def _ordinary(path: Path) -> Raster:
    header = read_header(path)
    if header.size[0] * header.size[1] > LARGEST:
        raise unreadable(
            path, f"{header.size[0]} x {header.size[1]} pixels; write it as tiled TIFF"
        )
    kept = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    if header.rotated:  # OpenCV turns it only if it may change channels too
        kept = cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), kept)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise unreadable(path, "damaged, cut off or not an image")
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return ArrayRaster(path, pixels)
