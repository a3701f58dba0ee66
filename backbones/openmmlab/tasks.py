"""Define the records in which a task states once what the rest of the suite needs to know.

A task's package (`detection`, `segmentation`, `classification`) fills in its `Task` in `task.py`
and registers it when it is imported. Training, prediction, reports, export, publishing, the doctor
and the tools ask `task_of` and know neither libraries nor names of heads.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from backbones.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn


class ValuesNeeded(InputError):
    """Raised where a part of a model reads values from tensors that have only sizes."""


# The package that registers the task of each scope, and with it the library's classes.
ROOMS = {
    "mmdet": "backbones.openmmlab.detection",
    "mmseg": "backbones.openmmlab.segmentation",
    "mmengine": "backbones.openmmlab.classification",
}
_TASKS: dict[str, "Task"] = {}

# A data sample of mmengine's, or a part of one: fields are set at run time, so no type has them.
Sample: TypeAlias = Any
# What predictions trade accuracy for time with: settings by knob, dotted config keys by setting.
Knobs: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Metric:
    """Describe a metric that an evaluator returns.

    Attributes:
        key: name in the evaluator's results, such as `coco/bbox_mAP`.
        name: display name, such as `box AP`.
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
class ReportLayout:
    """Describe how the page of a report shows a task's figures.

    The report holds a copy, so that a page needs no task's package.

    Attributes:
        class_scores: keys of the scores of a class, the one that classes are sorted by first.
        class_count: key of the amount of a class in the data.
        per_cent: whether scores and amount of a class are shares, shown in per cent.
        class_note: note above the table of classes.
        confusion_unit: what a confusion matrix counts.
        confusion_note: how they were counted.
        background: whether a prediction or an object may have no counterpart.
        image_score: name of the score that ranks images.
        image_note: how that score is defined.
    """

    class_scores: tuple[str, ...] = ()
    class_count: str = ""
    per_cent: bool = False
    class_note: str = ""
    confusion_unit: str = "count"
    confusion_note: str = ""
    background: bool = False
    image_score: str = "score"
    image_note: str = ""


@dataclass(frozen=True)
class PublicDataset:
    """Describe a data set that a model card and a zoo entry know by name.

    Attributes:
        dataset_type: the class that reads it in configs.
        name: display name.
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
    """Define how `Task.run_parts` runs each part of a model."""

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
    """Describe one image's differences between a file and its model (`export.differences`)."""

    @property
    def largest(self) -> dict[str, float]:
        """Return the largest difference of each compared quantity."""
        ...

    @property
    def detections(self) -> int:
        """Return the larger of the model's and the file's numbers of detections."""
        ...

    @property
    def unpaired(self) -> int:
        """Return how many of them only one of the two found."""
        ...


class Comparison(Protocol):
    """Compare an exported file with the library's own prediction."""

    def reference(self, batch: dict) -> "Sequence[Tensor]":
        """Return the outputs of the library's own prediction, in the order of the graph's."""
        ...

    def differences(
        self, reference: "Sequence[Tensor]", outputs: "Sequence[Tensor]", batch: dict
    ) -> Differences:
        """Return how far the file's outputs are from the reference."""
        ...

    def sample(self, outputs: "Sequence[Tensor]", batch: dict) -> Sample:
        """Return outputs as the data sample that the config's evaluator takes."""
        ...


@dataclass(frozen=True)
class Export:
    """Describe how a task's models become functions of images; see `export.graphs.build_graph`.

    Attributes:
        graph: turns (preprocessing, model, logits) into a module of images, with `inputs`, the
            dynamic axes of its argument by name, and `outputs`, the names of its results.
        comparison: turns (model, logits) into what a file of that graph is compared with.
        settings: returns what `sample` needs to know of a model, as plain data for a file.
        sample: turns a file's outputs for one image, the image's data sample and the settings into
            the prediction, in pixels of the original image.
        float_layers: pattern of the names of layers that stay float in an INT8 file: the last ones.
        samples: returns the data samples that a batch of the test pipeline holds or is given.
        has_logits: whether a graph can return logits instead of labels.
    """

    graph: "Callable[[nn.Module, nn.Module, bool], nn.Module]"
    comparison: "Callable[[nn.Module, bool], Comparison]"
    settings: "Callable[[Any], dict]"
    sample: "Callable[[Sequence[Tensor], Sample, Mapping], Sample]"
    float_layers: re.Pattern[str]
    samples: "Callable[[dict], Sequence[Sample]]" = lambda batch: batch["data_samples"]
    has_logits: bool = False


@dataclass(frozen=True)
class Task:
    """Describe a task: its name, its metrics, the parts of its models, and their functions.

    Attributes:
        name: name in `configs/` and in reports.
        scope: mmengine's default_scope of its configs.
        pipeline_tag: what the Hugging Face hub calls it.
        metrics: all figures that its evaluators return, those that it is judged by first.
        compiled_parts: modules whose forward pass torch.compile takes.
        compiled_region_parts: the same for modules that are given a changing number of regions.
        figures: what a report shows beyond scores: takes the evaluator's metrics, the data set's
            meta and how many of the worst images to keep; returns an `evaluation.figures.Figures`,
            or None.
        report_layout: how the page of a report shows these figures.
        class_layers: pattern of the names of layers that have rows for each class.
        parts: names under which parameters and multiply-adds are counted, with the modules of each.
        owns: whether a model is one of this task's.
        default_size: returns a config's (width, height) of the image that multiply-adds are counted
            for; raises InputError where the config does not say.
        run_parts: run a model on an image (1, 3, H, W), part by part, without predicting anything.
        step_loss: returns for a model, a batch (N, 3, H, W) and its config a loss whose forward and
            backward pass take the memory of a training step; on tensors without values.
        heap_overhead: bytes that malloc cannot reuse at the peak of a step on a CPU, for each byte
            of the heap in use; measured (`doctor.memory`).
        latency_knobs: returns what a config's predictions trade accuracy for time with beyond image
            size, dtype and runtime; the first setting of each knob is the config's own.
        backbone: the attribute of a model that holds the pretrained network.
        array_loader: the transform that takes an image array instead of the pipeline's loader.
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
    latency_knobs: "Callable[[Config], Knobs]" = lambda config: {}
    backbone: str = "backbone"
    array_loader: str = "LoadImageFromNDArray"
    public_datasets: tuple[PublicDataset, ...] = ()
    export: Export | None = None
    figures: Callable[..., Any] | None = None
    report_layout: ReportLayout = ReportLayout()

    def metric(self, key: str) -> Metric | None:
        """Return the metric of this key, or None."""
        return next((metric for metric in self.metrics if metric.key == key), None)

    @property
    def main_metrics(self) -> tuple[Metric, ...]:
        """Return the metrics that a result is judged by."""
        return tuple(metric for metric in self.metrics if metric.main)


def register_task(task: Task) -> Task:
    """Register a task by its scope; return it."""
    _TASKS[task.scope] = task
    return task


def task_of(config: "Mapping | Config") -> Task:
    """Return the task of a config by its `default_scope`, after importing the task's package.

    Raises:
        InputError: no task has that scope.
    """
    return task_of_scope(config.get("default_scope") or "mmengine")


def task_of_scope(scope: str) -> Task:
    """Return the task of a scope, after importing its package.

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
    """Return the task that a built model belongs to; its package has been imported to build it.

    Raises:
        InputError: no task knows models of this class.
    """
    for task in _TASKS.values():
        if task.owns(model):
            return task
    name = type(model).__name__
    raise InputError(
        f"{name}: no model of {', '.join(task.name for task in _TASKS.values()) or 'any task'}",
        code="unsupported",
        where=name,
    )


def module_at(model: "nn.Module", path: str) -> "nn.Module | None":
    """Return the module at a dotted path, or None if the model has none there."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
