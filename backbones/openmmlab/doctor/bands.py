"""Check the bands of a run's images: their statistics against the config's normalisation."""

from collections.abc import Iterator

from backbones.openmmlab.data.band_statistics import BandStatistics, measure
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.data.own_bands import loaded_bands, refuse_colour_transforms
from backbones.openmmlab.tasks import task_of

from .dataset import DatasetPlan
from .plan import RunPlan

KEY = "model.data_preprocessor"
SHIFT, SCALE = 1.0, 2.0  # deviations by which a mean, and factor by which a deviation, may differ


def check_transforms(plan: RunPlan) -> Iterator[Issue]:
    """Refuse transforms for 8-bit RGB where other bands are loaded, and channels that differ."""
    for dataset in plan.datasets:
        bands = loaded_bands(dataset.pipeline)
        if bands is None:
            continue
        refuse_colour_transforms(dataset.pipeline, f"{dataset.key}.pipeline")
        number = len(bands.chosen)
        model = plan.config.model
        found = {
            f"model.{task_of(plan.config).backbone}.in_channels": (
                (model.get(task_of(plan.config).backbone) or {}).get("in_channels", 3)
            ),
            f"{KEY}.mean": len((model.get("data_preprocessor") or {}).get("mean") or [0] * number),
        }
        for key, given in found.items():
            if given != number:
                text = f"{given}, but {dataset.key} loads {number} bands"
                yield Issue("error", key, text, f"set it to {number}", "bad-config")


def check_bands(plan: RunPlan) -> Iterator[Issue]:
    """Measure the bands of the training images and compare them with the normalisation."""
    for dataset in plan.datasets:
        bands = loaded_bands(dataset.pipeline)
        if bands is None or not dataset.trained_on or not dataset.is_readable:
            continue
        found = measure(dataset.images, bands)
        if not found.bands:
            yield Issue("error", dataset.key, "every pixel is nodata or NaN", code="no-data")
            continue
        for band in found.bands:
            yield Issue("note", dataset.key, str(band), code="bad-value")
        if found.missing:
            ignored = plan.config.get("default_scope") == "mmseg"
            so = (
                "they are ignored"
                if ignored
                else "a detector does not ignore them: they are filled"
            )
            text = f"{found.missing:.1%} of the pixels are nodata or NaN; {so}"
            yield Issue("note", dataset.key, text, code="bad-image")
        yield from _inside(dataset, bands, found.bands)
        given = plan.config.model.get("data_preprocessor") or {}
        yield from _normalisation(given.get("mean") or [], given.get("std") or [], found.bands)


def _inside(
    dataset: DatasetPlan, bands: Bands, found: tuple[BandStatistics, ...]
) -> Iterator[Issue]:
    """Report a nodata value between values that are data."""
    for band in found:
        low, high = band.percentiles[0], band.percentiles[-1]
        if bands.nodata is not None and low < bands.nodata < high:
            yield Issue(
                "warning", f"{dataset.key}.pipeline",
                f"nodata {bands.nodata:g} lies among the values of band {band.name} "
                f"({low:.6g} to {high:.6g}): pixels that are data may be ignored",
                "set nodata to null in bands.json if it is a valid value", "bad-value",
            )  # fmt: skip
            return


def _normalisation(
    means: list[float], deviations: list[float], found: tuple[BandStatistics, ...]
) -> Iterator[Issue]:
    for band, mean, std in zip(found, means, deviations, strict=False):
        away = abs(band.mean - mean) / max(band.std, 1e-12)
        factor = max(std, 1e-12) / max(band.std, 1e-12)
        if band.std and (away > SHIFT or not 1 / SCALE < factor < SCALE):
            yield Issue(
                "warning", KEY,
                f"normalises band {band.name} by mean {mean:.6g} and deviation {std:.6g}; its "
                f"images have {band.mean:.6g} and {band.std:.6g}",
                "--data ROOT measures and sets both", "bad-value",
            )  # fmt: skip
