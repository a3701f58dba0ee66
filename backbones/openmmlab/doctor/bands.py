"""Check the bands of a run's images: their statistics against the config's normalisation."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from backbones.openmmlab.data.band_pipelines import loaded_bands, refuse_colour_transforms
from backbones.openmmlab.data.band_statistics import BandStatistics, measure
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.tasks import task_of
from backbones.openmmlab.walk import nodes

from .dataset import DatasetPlan
from .plan import RunPlan

SHIFT, SCALE = 1.0, 2.0  # deviations by which a mean, and factor by which a deviation, may differ


class Normalisation(NamedTuple):
    """Hold mean and deviation of each band as a config has them, and where."""

    key: str
    mean: Sequence[float]
    std: Sequence[float]
    scale: float  # of the values that they are of


def check_transforms(plan: RunPlan) -> Iterator[Issue]:
    """Refuse transforms for 8-bit RGB where other bands are loaded, and channels that differ."""
    for dataset in plan.datasets:
        bands = loaded_bands(dataset.pipeline)
        if bands is None:
            continue
        refuse_colour_transforms(dataset.pipeline, f"{dataset.key}.pipeline")
        number = len(bands.chosen)
        backbone = task_of(plan.config).backbone
        network: Any = _model(plan).get(backbone) or {}
        given = _normalisation(plan, dataset, bands)
        found = {
            f"model.{backbone}.in_channels": network.get("in_channels", 3),
            f"{given.key}.mean": len(given.mean or [0] * number),
        }
        for key, count in found.items():
            if count != number:
                text = f"{count}, but {dataset.key} loads {number} bands"
                yield Issue("error", key, text, f"set it to {number}", "bad-config")


def check_bands(plan: RunPlan) -> Iterator[Issue]:
    """Measure the bands of the training images and compare them with the normalisation."""
    for dataset in plan.datasets:
        bands = loaded_bands(dataset.pipeline)
        if bands is None or not dataset.trained_on or not dataset.is_readable:
            continue
        found = measure(dataset.images, bands)
        severity = "warning" if plan.skips_bad_images else "error"
        for error in found.refused:
            issue = Issue.of(error, dataset.key)
            yield Issue(severity, issue.where, issue.text, issue.advice, "bad-image")
        if not found.bands:
            yield Issue("error", dataset.key, "every pixel is nodata or NaN", code="no-data")
            continue
        for band in found.bands:
            yield Issue("note", dataset.key, str(band), code="bad-value")
        if found.missing:
            so = "a model without label maps does not ignore them: they are filled"
            if plan.config.get("default_scope") == "mmseg":
                so = "they are ignored"
            text = f"{found.missing:.1%} of the pixels are nodata or NaN; {so}"
            yield Issue("note", dataset.key, text, code="bad-image")
        yield from _inside(dataset, bands, found.bands)
        yield from _compare(_normalisation(plan, dataset, bands), found.bands)


def _model(plan: RunPlan) -> Any:
    """Return the config of the model, which test-time augmentation wraps."""
    return plan.config.model.get("module") or plan.config.model


def _normalisation(plan: RunPlan, dataset: DatasetPlan, bands: Bands) -> Normalisation:
    """Return what normalises a data set's images: the model's data preprocessor, or a transform."""
    given = _model(plan).get("data_preprocessor")
    if given or task_of(plan.config).name != "classification":
        given = given or {}
        mean, std = given.get("mean") or (), given.get("std") or ()
        return Normalisation("model.data_preprocessor", mean, std, 1.0)
    scale = 1 / 255 if bands.dtype == "uint8" else 1.0
    for path, step in nodes(dataset.pipeline):
        if step.get("mean") and step.get("std"):
            return Normalisation(f"{dataset.key}.pipeline.{path}", step["mean"], step["std"], scale)
    return Normalisation(f"{dataset.key}.pipeline", (), (), scale)


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


def _compare(given: Normalisation, found: tuple[BandStatistics, ...]) -> Iterator[Issue]:
    for band, mean, std in zip(found, given.mean, given.std, strict=False):
        own_mean, own_std = band.mean * given.scale, band.std * given.scale
        away = abs(own_mean - mean) / max(own_std, 1e-12)
        factor = max(std, 1e-12) / max(own_std, 1e-12)
        if band.std and (away > SHIFT or not 1 / SCALE < factor < SCALE):
            yield Issue(
                "warning", given.key,
                f"normalises band {band.name} by mean {mean:.6g} and deviation {std:.6g}; its "
                f"images have {own_mean:.6g} and {own_std:.6g}",
                "--data ROOT measures and sets both", "bad-value",
            )  # fmt: skip
