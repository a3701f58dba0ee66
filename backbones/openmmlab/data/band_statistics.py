"""Measure the bands of a data set's images on a bounded sample, read in windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbones.errors import InputError, UnreadableImage

from .bands import Bands, nothing_there
from .files import spread
from .rasters import open_raster

IMAGES, SIDE = 200, 1024  # images that are opened, and the side of the window that is read of each
KEPT = 2048  # pixels of an image that percentiles are taken from
PERCENTILES = (1, 50, 99)


@dataclass(frozen=True)
class BandStatistics:
    """Hold what a sample says of one band, of the pixels that are missing in no band.

    Attributes:
        name: of the band.
        mean, std, low, high: mean, standard deviation, minimum and maximum.
        percentiles: values at `PERCENTILES`, of a sample of the sample.
        missing: share of this band's pixels that are nodata or NaN (0 to 1).
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    percentiles: tuple[float, ...]
    missing: float = 0.0

    def __str__(self) -> str:
        at = ", ".join(f"{p}%: {v:.6g}" for p, v in zip(PERCENTILES, self.percentiles, strict=True))
        return (
            f"band {self.name}: mean {self.mean:.6g}, deviation {self.std:.6g}, "
            f"range {self.low:.6g} to {self.high:.6g} ({at})"
            + (f", {self.missing:.1%} nodata or NaN" if self.missing else "")
        )


@dataclass(frozen=True)
class Sampled:
    """Hold the statistics of each chosen band, the share of pixels missing in any (0 to 1), and
    the errors of images that cannot be read.
    """

    bands: tuple[BandStatistics, ...]
    missing: float
    images: int
    refused: tuple[InputError, ...] = ()


def measure(paths: Sequence[Path], bands: Bands) -> Sampled:
    """Measure the chosen bands on up to `IMAGES` images, the middle `SIDE` x `SIDE` of each.

    Means and deviations are merged image by image in float64 (Chan, Golub and LeVeque, 1979), so
    that memory holds one window and the values for percentiles. Images that training would refuse
    are left out and returned as errors.

    Raises:
        InputError: a package that reads such files is not installed.
    """
    width = len(bands.chosen)
    count, total, missing, gone = 0, 0, 0, np.zeros(width)
    mean, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    kept: list[np.ndarray] = []
    refused: list[InputError] = []
    opened = spread(paths, IMAGES)
    for path in opened:
        try:
            pixels, lacking = _middle(path, bands)
        except UnreadableImage as error:
            refused.append(error)
            continue
        values = pixels[~lacking.any(-1)].astype(np.float64)
        total += lacking.shape[0] * lacking.shape[1]
        missing += int(lacking.any(-1).sum())
        gone += lacking.sum((0, 1))
        if not len(values):
            continue
        n, own = len(values), values.mean(0)
        change = own - mean
        squares += ((values - own) ** 2).sum(0) + change**2 * (count * n / (count + n))
        mean += change * (n / (count + n))
        count += n
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        kept.append(values[:: -(-n // KEPT)])
    if not count:
        return Sampled((), 1.0, len(opened), tuple(refused))
    marks = np.percentile(np.concatenate(kept), PERCENTILES, axis=0)
    std = np.sqrt(squares / count)
    found = tuple(
        BandStatistics(
            name, float(mean[i]), float(std[i]), float(low[i]), float(high[i]),
            tuple(map(float, marks[:, i])), float(gone[i] / total),
        )
        for i, name in enumerate(bands.chosen)
    )  # fmt: skip
    return Sampled(found, missing / total, len(opened), tuple(refused))


def _middle(path: Path, bands: Bands) -> tuple[np.ndarray, np.ndarray]:
    """Read the middle of an image; see `Bands.read`.

    Raises:
        UnreadableImage: training could not read it.
    """
    with open_raster(path) as raster:
        bands.check(raster)
        bands.check_size(raster)
        left, top = max(0, (raster.width - SIDE) // 2), max(0, (raster.height - SIDE) // 2)
        right, bottom = min(raster.width, left + SIDE), min(raster.height, top + SIDE)
        pixels, lacking = bands.read(raster, (left, top, right, bottom))
        if lacking.any(-1).all() and lacking.shape[:2] == (raster.height, raster.width):
            raise nothing_there(path)
    return pixels, lacking
