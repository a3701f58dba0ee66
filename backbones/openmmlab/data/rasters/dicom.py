"""Read DICOM files by pydicom; imported only where it is installed."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_rescale

from .raster import LARGEST, ArrayRaster, unreadable


def read_dicom(path: Path) -> ArrayRaster:
    """Read the image of a DICOM file, rescaled to its own unit (Hounsfield units of CT).

    Raises:
        UnreadableImage: it holds no image, several frames, or is damaged.
    """
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax is not None and syntax.is_deflated:
            raise unreadable(
                path, "DICOM deflated as a whole, of unknown size; store it undeflated"
            )
        file = pydicom.dcmread(path)
        values = int(file.Rows) * int(file.Columns) * int(file.get("SamplesPerPixel", 1))
        if int(file.get("NumberOfFrames", 1) or 1) != 1 or values > LARGEST:
            raise unreadable(path, "DICOM of several frames or too many pixels; write one a file")
        pixels = file.pixel_array
        if "RescaleSlope" in file:
            pixels = apply_rescale(pixels, file).astype(np.float32)
    except ValueError as error:
        raise error if hasattr(error, "code") else _damaged(path, error) from None
    except Exception as error:  # a damaged file may fail anywhere in a reader
        raise _damaged(path, error) from None
    return ArrayRaster(path, np.asarray(pixels))


def _damaged(path: Path, error: Exception) -> Exception:
    text = next(iter(str(error).splitlines()), type(error).__name__)
    return unreadable(path, f"DICOM damaged or without an image ({text})")
