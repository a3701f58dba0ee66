"""Read the chosen bands of an image: the one decoder of everything that is not 8-bit colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.errors import InputError

from .files import one_line
from .rasters import LARGEST, Raster, open_raster
from .rasters.raster import Window, holds, unreadable

COLOURS = ("red", "green", "blue")
COLOUR_MAPS = {
    name.removeprefix("COLORMAP_").lower(): getattr(cv2, name)
    for name in dir(cv2)
    if name.startswith("COLORMAP_")
}


@dataclass(frozen=True)
class Bands:
    """State which bands of a data set's images are read, and what its files must be like.

    Attributes:
        chosen: names of the bands that the network gets, in its order.
        names: names of all bands of a file, in the file's order.
        dtype: of the stored values.
        nodata: value that stands for a missing one; None if there is none. NaN and infinity always
            do in floats.
        fill: value of each chosen band where a pixel is missing, such as the band's mean.
        composite: names of the three chosen bands that pictures show as red, green and blue, or of
            one; None for the first, or for the bands called red, green and blue.
        colour_map: one of OpenCV's (`COLOUR_MAPS`), in which pictures show one band; None for grey.
    """

    chosen: tuple[str, ...]
    names: tuple[str, ...]
    dtype: str
    nodata: float | None = None
    fill: tuple[float, ...] = ()
    composite: tuple[str, ...] | None = None
    colour_map: str | None = None

    def __post_init__(self) -> None:
        for name in (*self.chosen, *(self.composite or ())):
            if name not in self.names:
                raise InputError(
                    f"bands: there is no band {one_line(name)}; the files have "
                    f"{', '.join(map(one_line, self.names))}",
                    code="unknown-name",
                    where=name,
                )
        if not self.chosen or len(set(self.chosen)) != len(self.chosen):
            raise InputError(
                "bands: name at least one, and each of them once", code="bad-value", where="bands"
            )
        if self.composite is not None and len(self.composite) not in (1, 3):
            raise InputError(
                f"composite: names {len(self.composite)} bands; pictures show three, or one",
                code="bad-value",
                where="composite",
            )
        if self.colour_map is not None and self.colour_map not in COLOUR_MAPS:
            raise InputError(
                f"colour_map {one_line(self.colour_map)}: is none of {', '.join(COLOUR_MAPS)}",
                code="unknown-name",
                where="colour_map",
            )
        if self.nodata is not None and not holds(np.dtype(self.dtype), self.nodata):
            raise InputError(
                f"nodata {self.nodata:g}: is no value of {self.dtype}",
                code="bad-value",
                where="nodata",
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Bands":
        """Return the bands that arguments of `LoadImage` state; others are passed over."""
        shown = settings.get("composite")
        return cls(
            tuple(settings["bands"]), tuple(settings.get("band_names") or ()),
            settings.get("band_dtype", "uint8"), settings.get("nodata"),
            tuple(settings.get("fill") or ()), None if shown is None else tuple(shown),
            settings.get("colour_map"),
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Return them as arguments of `LoadImage`."""
        return dict(
            bands=self.chosen, band_names=self.names, band_dtype=self.dtype, nodata=self.nodata,
            fill=self.fill, composite=self.composite, colour_map=self.colour_map,
        )  # fmt: skip

    @property
    def indices(self) -> list[int]:
        """Return the positions of the chosen bands in a file."""
        return [self.names.index(name) for name in self.chosen]

    def is_missing(self, value: float) -> bool:
        """Return whether a value that a file holds stands for a missing one."""
        return value == self.nodata or not np.isfinite(value)

    def check(self, raster: Raster) -> None:
        """Compare an open file with these bands.

        Raises:
            UnreadableImage: it has another number or order of bands, or another dtype.
        """
        if raster.count != len(self.names):
            what = f"has {raster.count} bands, the data set's other images {len(self.names)}"
        elif raster.dtype != np.dtype(self.dtype):
            what = f"holds {raster.dtype}, the data set's other images {self.dtype}"
        elif set(raster.names) == set(self.names) and raster.names != self.names:
            what = f"has its bands in the order {', '.join(raster.names)}"
        else:
            return
        raise unreadable(raster.path, what)

    def check_size(self, raster: Raster) -> None:
        """Raise UnreadableImage if an open file is too large to be read at once."""
        if raster.height * raster.width * len(self.chosen) > LARGEST:
            raise unreadable(
                raster.path,
                f"{raster.width} x {raster.height} pixels are more than are read at once; predict "
                "it with --tile, or cut it into smaller images",
            )

    def read(self, raster: Raster, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read a window of an open file.

        Returns:
            Pixels (h, w, bands), uint8 if the file's are and float32 otherwise, and where each band
            is missing (h, w, bands), where it has its `fill`.
        """
        pixels = raster.read(self.indices, window)
        lacking: np.ndarray = np.zeros(pixels.shape, bool)
        if pixels.dtype.kind == "f":
            lacking |= ~np.isfinite(pixels)
        if self.nodata is not None and np.isfinite(self.nodata):
            lacking |= pixels == np.array(self.nodata).astype(pixels.dtype)
        if pixels.dtype != np.uint8:
            with np.errstate(over="ignore"):
                pixels = pixels.astype(np.float32)
            lacking |= ~np.isfinite(pixels)  # a float64 beyond float32
        if lacking.any():
            fill = np.array(self.fill or (0.0,) * len(self.chosen))
            fill = np.clip(fill.round(), 0, 255) if pixels.dtype == np.uint8 else fill
            pixels = np.where(lacking, fill.astype(pixels.dtype), pixels)
        return pixels, lacking

    def of_frame(self, frame: np.ndarray, path: object) -> np.ndarray:
        """Return the chosen bands of 8-bit colour, such as a frame of a video.

        Args:
            frame: (H, W, 3) uint8 BGR.
            path: named in errors.

        Raises:
            UnreadableImage: they are not among red, green and blue in 8 bits.
        """
        if self.dtype != "uint8" or not set(map(str.lower, self.chosen)) <= set(COLOURS):
            raise unreadable(
                path,
                f"holds red, green and blue of 8 bits; the model reads {', '.join(self.chosen)} "
                f"of {self.dtype}",
            )
        rgb = frame[..., ::-1]
        return np.ascontiguousarray(rgb[..., [COLOURS.index(n.lower()) for n in self.chosen]])


def read_bands(path: Path, bands: Bands) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole image.

    Returns:
        Pixels (H, W, bands) as `Bands.read` returns them, and where any band is missing (H, W).

    Raises:
        UnreadableImage: it is damaged, unlike the data set's other images, too large to be read at
            once, or every pixel of it is missing.
    """
    with open_raster(path) as raster:
        bands.check(raster)
        bands.check_size(raster)
        pixels, lacking = bands.read(raster, (0, 0, raster.width, raster.height))
    missing = np.asarray(lacking.any(-1))
    if missing.all():
        raise nothing_there(path)
    return pixels, missing


def nothing_there(path: Path) -> InputError:
    """Return the error of an image without a single pixel of data."""
    return unreadable(path, "every pixel is nodata or NaN; remove the image")


def composite(
    image: np.ndarray, bands: Bands, limits: Sequence[tuple[float, float]] | None = None
) -> np.ndarray:
    """Show an image of any bands as (H, W, 3) uint8 BGR; 8-bit red, green and blue as they are.

    Args:
        image: (H, W, chosen bands).
        bands: name the three bands to show as red, green and blue; one is shown as grey, or in its
            colour map.
        limits: (black, white) of each shown band; by default its 2nd and 98th percentiles.
    """
    names = bands.composite or _default_composite(bands)
    shown = np.stack([image[..., bands.chosen.index(name)] for name in names], -1)
    if limits is None and image.dtype == np.uint8 and tuple(map(str.lower, names)) == COLOURS:
        limits = [(0, 255)] * 3
    if limits is None:
        sample = shown[:: max(1, len(shown) // 512), :: max(1, shown.shape[1] // 512)]
        low, high = np.percentile(sample.reshape(-1, len(names)).astype(np.float32), (2, 98), 0)
    else:
        low, high = np.array(limits, np.float32).T
    scaled = (shown.astype(np.float32) - low) / np.maximum(high - low, 1e-12)
    rgb = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    if len(names) == 1 and bands.colour_map is not None:
        return cv2.applyColorMap(rgb, COLOUR_MAPS[bands.colour_map])
    return np.ascontiguousarray(np.broadcast_to(rgb[..., ::-1], (*rgb.shape[:2], 3)))


def _default_composite(bands: Bands) -> tuple[str, ...]:
    colours = {name.lower(): name for name in bands.chosen}
    if all(colour in colours for colour in COLOURS):
        return tuple(colours[colour] for colour in COLOURS)
    return bands.chosen[:1]
