"""Read images of any number of bands and depth, whole or in windows, by libraries that are kept.

TIFF is read by tifffile, PNG and other ordinary images by OpenCV, .npy by NumPy, DICOM by pydicom
and everything else that GDAL knows by rasterio; the last two are optional.
"""

from .opening import image_size, open_raster, read_raster_header
from .raster import LARGEST, Raster

__all__ = ["LARGEST", "Raster", "image_size", "open_raster", "read_raster_header"]
