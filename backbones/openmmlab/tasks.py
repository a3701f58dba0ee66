"""The records in which a task says once what the rest of the suite needs to know of it.

A task room (`detection`, `segmentation`, `classification`) fills in its `Task` in `task.py` and
registers it when it is imported. Training, prediction, reports, export, publishing, the doctor and
the tools ask `task_of` and know neither libraries nor names of heads.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from backbones.errors import InputError

# The room that registers the task of each scope, and with it the library's classes.
ROOMS = {
    "mmdet": "backbones.openmmlab.detection",
    "mmseg": "backbones.openmmlab.segmentation",
    "mmengine": "backbones.openmmlab.classification",
}
_TASKS: dict[str, "Task"] = {}


@dataclass(frozen=True)
class Metric:
    """A figure that an evaluator returns.

    Attributes:
        key: as the evaluator calls it, such as `coco/bbox_mAP`.
        name: as people call it, such as `box AP`.
        best: its value for perfect predictions, 1 or 100.
        main: whether it is one of the figures that a result is judged by.
        outline_of: the key of the metric whose masks it measures along their outlines.
        sizes: keys of the same figure for small, medium and large objects.
    """

    key: str
    name: str
    best: float = 1.0
    main: bool = False
    outline_of: str | None = None
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a task is called, measured by and made of.

    Attributes:
        name: as in `configs/` and in reports.
        scope: mmengine's default_scope of its configs.
        pipeline_tag: what the Hugging Face hub calls it.
        metrics: all figures that its evaluators return, those that it is judged by first.
        compiled_parts: modules whose forward pass torch.compile takes.
        compiled_region_parts: the same for modules that are given a changing number of regions.
        figures: what a report tells beyond scores: takes the evaluator's metrics, the data set's
            meta and how many of the worst images to keep; returns an `evaluation.figures.Figures`,
            or None.
        class_layers: pattern of the names of layers that have rows for each class.
    """

    name: str
    scope: str
    pipeline_tag: str
    metrics: tuple[Metric, ...]
    compiled_parts: tuple[str, ...]
    class_layers: re.Pattern[str]
    compiled_region_parts: tuple[str, ...] = ()
    figures: Callable[..., Any] | None = None

    def metric(self, key: str) -> Metric | None:
        """Return the metric of this key, or None."""
        return next((metric for metric in self.metrics if metric.key == key), None)

    @property
    def main_metrics(self) -> tuple[Metric, ...]:
        """The figures that a result is judged by."""
        return tuple(metric for metric in self.metrics if metric.main)


def register_task(task: Task) -> Task:
    """Make a task known by its scope; return it."""
    _TASKS[task.scope] = task
    return task


def task_of(config: Mapping) -> Task:
    """Return the task of a config by its `default_scope`, after importing the task's room.

    Raises:
        InputError: no task has that scope.
    """
    return task_of_scope(config.get("default_scope") or "mmengine")


def task_of_scope(scope: str) -> Task:
    """Return the task of a scope, after importing its room.

    Raises:
        InputError: no task has that scope.
    """
    if scope not in _TASKS:
        if scope not in ROOMS:
            raise InputError(
                f"config key default_scope: {scope!r} is none of {', '.join(ROOMS)}",
                code="bad-value",
                where="default_scope",
            )
        import_module(ROOMS[scope])
    return _TASKS[scope]
