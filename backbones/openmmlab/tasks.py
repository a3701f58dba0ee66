"""The records in which a task says once what the rest of the suite needs to know of it.

A task room (`detection`, `segmentation`, `classification`) fills in its `Task` in `task.py` and
registers it when it is imported. Training, prediction, reports, export, publishing, the doctor and
the tools ask `task_of` and know neither libraries nor names of heads.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from backbones.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.structures import BaseDataElement
    from torch import Tensor, nn


class ValuesNeeded(InputError):
    """A part of a model reads values, where it was given tensors of sizes alone."""


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
class PublicDataset:
    """A data set that a model card and a zoo entry know by name.

    Attributes:
        dataset_type: the class that reads it in configs.
        name: as people call it.
        hub_id: its identifier on the Hugging Face hub.
        zoo_field: the field of `backbones.weights.zoo.Weights` that holds a score on it.
        metric: the key of that score.
    """

    dataset_type: str
    name: str
    hub_id: str
    zoo_field: str
    metric: str


class PartRunner(Protocol):
    """What `Task.run_parts` runs each part of a model with."""

    def __call__(
        self,
        part: str,
        function: Callable[..., Any],
        *inputs: Any,
        published: bool = True,
        executed: bool = True,
        **named_inputs: Any,
    ) -> Any:
        """Run a part and return its output.

        Args:
            part: its name, a key of `Task.parts`.
            function: a module or a method of the model.
            inputs, named_inputs: its arguments.
            published: whether papers count these multiply-adds.
            executed: whether inference executes them.
        """
        ...


class Differences(Protocol):
    """How far one image's outputs of a file are from the model's; see `export.differences`."""

    @property
    def largest(self) -> dict[str, float]:
        """The largest difference by what was compared."""
        ...

    @property
    def detections(self) -> int:
        """How many the model or the file found, whichever found more."""
        ...

    @property
    def unpaired(self) -> int:
        """How many of them only one of the two found."""
        ...


class Comparison(Protocol):
    """What the library itself predicts, to hold an exported file against."""

    def reference(self, batch: dict) -> "Sequence[Tensor]":
        """Return the outputs of the library's own prediction in the order of the graph's."""
        ...

    def differences(
        self, reference: "Sequence[Tensor]", outputs: "Sequence[Tensor]", batch: dict
    ) -> Differences:
        """Return how far the file's outputs are from the reference."""
        ...

    def sample(self, outputs: "Sequence[Tensor]", batch: dict) -> "BaseDataElement":
        """Return outputs as the data sample that the config's evaluator takes."""
        ...


@dataclass(frozen=True)
class Export:
    """How a task's models become functions of images; see `export.graphs.build_graph`.

    Attributes:
        graph: of (preprocessing, model, logits) makes a module of images alone, with `inputs`, the
            dynamic axes of its argument by name, and `outputs`, the names of its results.
        comparison: of (model, logits) makes what a file of that graph is held against.
        has_logits: whether a graph can return logits instead of labels.
    """

    graph: "Callable[[nn.Module, nn.Module, bool], nn.Module]"
    comparison: "Callable[[nn.Module, bool], Comparison]"
    has_logits: bool = False


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
        parts: names under which parameters and multiply-adds are counted, with the modules of each.
        owns: whether a model is one of this task's.
        default_size: of a config, the (width, height) of the image that multiply-adds are counted
            for; raises InputError where the config does not say.
        run_parts: run a model on an image (1, 3, H, W), part by part, without predicting anything.
        step_loss: of a model, a batch (N, 3, H, W) and its config, a loss whose forward and
            backward pass take the memory of a training step; on tensors without values.
        heap_overhead: bytes that malloc cannot reuse at the peak of a step on a CPU, for each byte
            of the heap in use; measured (`doctor.memory`).
        backbone: the attribute of a model that holds the pretrained network.
        array_loader: the transform that takes an image array in the place of the pipeline's loader.
        public_datasets: those that a model card names.
        export: how a model becomes a file for other runtimes; None if it does not.
    """

    name: str
    scope: str
    pipeline_tag: str
    metrics: tuple[Metric, ...]
    compiled_parts: tuple[str, ...]
    class_layers: re.Pattern[str]
    parts: Mapping[str, tuple[str, ...]]
    owns: "Callable[[nn.Module], bool]"
    default_size: "Callable[[Config], tuple[int, int]]"
    run_parts: "Callable[[nn.Module, Tensor, PartRunner], None]"
    step_loss: "Callable[[nn.Module, Tensor, Config], Tensor]"
    heap_overhead: float
    compiled_region_parts: tuple[str, ...] = ()
    backbone: str = "backbone"
    array_loader: str = "LoadImageFromNDArray"
    public_datasets: tuple[PublicDataset, ...] = ()
    export: Export | None = None
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


def task_of(config: "Mapping | Config") -> Task:
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


def task_of_model(model: "nn.Module") -> Task:
    """Return the task that a built model belongs to; its room has been imported to build it.

    Raises:
        InputError: no task knows models of this class.
    """
    for task in _TASKS.values():
        if task.owns(model):
            return task
    name = type(model).__name__
    raise InputError(
        f"{name}: is no model of {', '.join(task.name for task in _TASKS.values()) or 'any task'}",
        code="unsupported",
        where=name,
    )


def module_at(model: "nn.Module", path: str) -> "nn.Module | None":
    """Return the module at a dotted path, or None where the model has none there."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
