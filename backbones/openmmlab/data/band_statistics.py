"""Measure the bands of a data set's images on a bounded sample, read in windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bands import Bands
from .files import spread
from .rasters import open_raster

IMAGES, SIDE = 200, 1024  # images that are opened, and the side of the window that is read of each
KEPT = 2048  # pixels of an image that percentiles are taken from
PERCENTILES = (1, 50, 99)


@dataclass(frozen=True)
class BandStatistics:
    """Hold what a sample says of one band, of the pixels that are not missing.

    Attributes:
        name: of the band.
        mean, std, low, high: mean, standard deviation, minimum and maximum.
        percentiles: values at `PERCENTILES`, of a sample of the sample.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    percentiles: tuple[float, ...]

    def __str__(self) -> str:
        at = ", ".join(f"{p}%: {v:.6g}" for p, v in zip(PERCENTILES, self.percentiles, strict=True))
        return (
            f"band {self.name}: mean {self.mean:.6g}, deviation {self.std:.6g}, "
            f"range {self.low:.6g} to {self.high:.6g} ({at})"
        )


@dataclass(frozen=True)
class Sampled:
    """Hold the statistics of each chosen band, and the share of missing pixels (0 to 1)."""

    bands: tuple[BandStatistics, ...]
    missing: float
    images: int


def measure(paths: Sequence[Path], bands: Bands) -> Sampled:
    """Measure the chosen bands on up to `IMAGES` images, the middle `SIDE` x `SIDE` of each.

    Means and deviations are merged image by image in float64 (Chan, Golub and LeVeque, 1979), so
    that memory holds one window and the values for percentiles.

    Raises:
        UnreadableImage: an image cannot be read or is unlike the others.
    """
    width = len(bands.chosen)
    count, missing, total = 0, 0, 0
    mean, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    kept: list[np.ndarray] = []
    opened = spread(paths, IMAGES)
    for path in opened:
        with open_raster(path) as raster:
            bands.check(raster)
            left, top = max(0, (raster.width - SIDE) // 2), max(0, (raster.height - SIDE) // 2)
            right, bottom = min(raster.width, left + SIDE), min(raster.height, top + SIDE)
            pixels, lacking = bands.read(raster, (left, top, right, bottom))
        values = pixels[~lacking].astype(np.float64)
        total += lacking.size
        missing += int(lacking.sum())
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
        return Sampled((), 1.0, len(opened))
    marks = np.percentile(np.concatenate(kept), PERCENTILES, axis=0)
    std = np.sqrt(squares / count)
    found = tuple(
        BandStatistics(
            name, float(mean[i]), float(std[i]), float(low[i]), float(high[i]),
            tuple(map(float, marks[:, i])),
        )
        for i, name in enumerate(bands.chosen)
    )  # fmt: skip
    return Sampled(found, missing / total, len(opened))
