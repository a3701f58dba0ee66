"""Extract what the checks of a run need from its config, once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel

from backbones.errors import InputError
from backbones.openmmlab.config.global_batch import micro_batch_size, norm_keys, recipe_batch
from backbones.openmmlab.config.machine import process_count
from backbones.openmmlab.tasks import Task, task_of
from backbones.openmmlab.walk import type_name

from .complexity import build_on_meta
from .dataset import DatasetPlan

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class RunPlan:
    """Describe a run as its config defines it.

    Attributes:
        config: a copy of the config.
        splits: those of train, val and test that are read.
        task: detection, segmentation or classification; None of a scope that is none of theirs.
        ranks: processes of the run.
        micro_batch: images that one rank computes at once; None if nothing is trained or the
            config does not say.
        accumulative_counts: mmengine's own accumulation.
        recipe_batch: global batch size that the learning rate is for; None if unknown.
        crop: (height, width) of a segmentor's training crops.
        norms: config keys of all batch norms.
        datasets: what the splits read, each once, wrappers taken off.
    """

    config: Config
    splits: tuple[str, ...]
    task: Task | None
    ranks: int
    micro_batch: int | None
    accumulative_counts: int
    recipe_batch: int | None
    crop: tuple[int, int] | None
    norms: tuple[str, ...]
    datasets: tuple[DatasetPlan, ...]

    @classmethod
    def of(cls, config: Config, splits: Sequence[str] = SPLITS, images: int = 1000) -> "RunPlan":
        """Make the plan of a config.

        Args:
            config: a config that loads; it is copied and not changed.
            splits: which of train, val and test will be read.
            images: image files of each dataset to open, spread evenly; 0 for all.
        """
        config = deepcopy(config)
        try:
            task = task_of(config)
        except InputError:
            task = None
        loader, optimizer = config.get("train_dataloader"), config.get("optim_wrapper")
        training = "train" in splits and isinstance(loader, Mapping) and optimizer is not None
        datasets = tuple(_datasets(config, splits, images))
        summed = optimizer.get("accumulative_counts", 1) if training and optimizer else 1
        segments = task is not None and task.name == "segmentation"
        return cls(
            config=config,
            splits=tuple(splits),
            task=task,
            ranks=process_count(config),
            micro_batch=micro_batch_size(config) if training and "batch_size" in loader else None,
            accumulative_counts=summed,
            recipe_batch=recipe_batch(config),
            crop=_crop(datasets) if segments else None,
            norms=tuple(norm_keys(config.get("model"))),
            datasets=datasets,
        )

    @cached_property
    def model_or_error(self) -> BaseModel | Exception:
        """Return the model with shapes but no values, or the reason why it cannot be built."""
        try:
            with _offline():
                return build_on_meta(self.config)
        except Exception as error:  # a model's arguments may be anything
            return error

    @property
    def model(self) -> BaseModel | None:
        """Return the model with shapes but no values; None if it cannot be built."""
        built = self.model_or_error
        return None if isinstance(built, Exception) else built

    @property
    def skips_bad_images(self) -> bool:
        """Return whether training replaces unreadable images by others."""
        hooks = self.config.get("custom_hooks") or []
        return any(type_name(hook) == "SkipBadImagesHook" for hook in hooks)

    def evaluators(self, split: str) -> list[Mapping]:
        """Return the evaluators of a split: a config has none, one or a list of them."""
        given = self.config.get(f"{split}_evaluator") or ()
        given = (given,) if isinstance(given, Mapping) else given
        return [each for each in given if isinstance(each, Mapping)]

    def step_size(self) -> tuple[int, int] | None:
        """Return (width, height) of the largest padded training batch; None if unknown.

        A detector's is the largest scale of its pipeline, or its largest image without one.
        """
        if self.crop:
            return self.crop[1], self.crop[0]
        trained = [dataset for dataset in self.datasets if dataset.trained_on]
        for step in (step for dataset in trained for step in dataset.pipeline):
            if isinstance(side := step.get("input_size"), int):
                return side, side
        sizes = [scale for dataset in trained for scale in dataset.scales]
        if not sizes:
            sizes = [h.upright for d in trained if d.is_readable for h in d.headers.values()]
        if not sizes:
            return None
        width, height = max(map(max, sizes)), max(map(min, sizes))
        divisor = (self.config.model.get("data_preprocessor") or {}).get("pad_size_divisor", 1)
        return -(-width // divisor) * divisor, -(-height // divisor) * divisor


@contextmanager
def _offline() -> Iterator[None]:
    """Prevent the download of the language model that some detectors have."""
    if find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _crop(datasets: Sequence[DatasetPlan]) -> tuple[int, int] | None:
    steps = [step for each in datasets if each.trained_on for step in each.pipeline]
    crops = [step["crop_size"] for step in steps if type_name(step) == "RandomCrop"]
    if not crops:
        return None
    crop = crops[-1]
    return (crop, crop) if isinstance(crop, int) else tuple(crop)


def _datasets(config: Config, splits: Sequence[str], images: int) -> Iterator[DatasetPlan]:
    scope = config.get("default_scope") or "mmengine"
    found: list[tuple[str, list[str], Mapping, list[Mapping]]] = []
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
        for key, settings, steps in _inner(dataset, f"{split}_dataloader.dataset", ()):
            same = [each for each in found if each[2] == settings and each[3] == steps]
            if same and split not in same[0][1]:
                same[0][1].append(split)
            elif same:
                continue  # twice in one split
            else:
                found.append((key, [split], settings, steps))
    for key, reading, settings, steps in found:
        yield DatasetPlan(key, tuple(reading), settings, tuple(steps), scope, images)


def _inner(
    settings: Any, key: str, outer: Sequence[Mapping]
) -> Iterator[tuple[str, Mapping, list[Mapping]]]:
    """Yield the key, config and transforms of every dataset that is read, through all wrappers."""
    if not isinstance(settings, Mapping):
        return
    own = settings.get("pipeline")
    own = own if isinstance(own, list | tuple) else ()
    steps = [*(step for step in own if isinstance(step, Mapping)), *outer]
    if isinstance(settings.get("dataset"), Mapping):
        yield from _inner(settings["dataset"], f"{key}.dataset", steps)
    elif isinstance(settings.get("datasets"), list | tuple):
        for number, each in enumerate(settings["datasets"]):
            yield from _inner(each, f"{key}.datasets.{number}", steps)
    else:
        yield key, settings, steps
