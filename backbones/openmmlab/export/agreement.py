"""Compare an exported file's outputs with the model's, on images of the data set."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, FUNCTIONS
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.openmmlab.prediction.exported import Run
from backbones.openmmlab.tasks import Comparison, Task, task_of

from .differences import Differences, relative_difference
from .graphs import Preprocessing

# Times the tolerance: share of detections that may differ. Rounding decides between nearly equal
# scores, and what suppression then keeps instead changes a whole cluster; AP is held by itself.
CLUSTERS = 5


@dataclass
class Agreement:
    """Measure how far an exported file is from its model.

    Attributes:
        task: the task whose metrics the scores are.
        images: how many were compared.
        differences: the largest difference by what was compared, each relative to its range: maps
            and logits to the largest magnitude, boxes to the image's longer side, scores and masks
            to 1, labels as the share of pixels.
        detections: how many the model or the file found, whichever found more.
        unpaired: how many of them only one of the two found.
        scores: scores of the model and of the file, by metric, on these images alone.
        finite: whether no output was infinite or not a number.
    """

    task: Task
    images: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    detections: int = 0
    unpaired: int = 0
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    finite: bool = True

    def add(self, largest: dict[str, float], detections: int = 0, unpaired: int = 0) -> None:
        """Add one image's `Differences`."""
        self.images += 1
        self.detections += detections
        self.unpaired += unpaired
        for name, value in largest.items():
            self.differences[name] = max(value, self.differences.get(name, 0.0))

    def problem(self, tolerance: float) -> str:
        """Describe the first figure beyond the tolerance in a phrase; empty if there is none."""
        if not self.finite:
            return "an output is infinite or NaN"
        for name, value in self.differences.items():
            if not value <= tolerance:
                return f"{name} differ by {value:.2g}"
        if self.unpaired > CLUSTERS * tolerance * self.detections:
            return f"{self.unpaired} of {self.detections} detections differ"
        for name, (model, file) in self.scores.items():
            metric = self.task.metric(name)
            if abs(model - file) > tolerance * (metric.best if metric else 1.0):
                return f"{name} is {file:.4g}, the model's {model:.4g}"
        return ""

    def lines(self) -> Iterator[str]:
        """Yield the report, one line per figure."""
        yield f"compared on {self.images} images of the data set:"
        for name, value in self.differences.items():
            yield f"  largest difference of {name}: {value:.3g}"
        if self.detections:
            yield f"  detections without a counterpart: {self.unpaired} of {self.detections}"
        for name, (model, file) in self.scores.items():
            yield f"  {name}: model {model:.4f}, file {file:.4f}, change {file - model:+.4f}"

    def as_json(self) -> dict:
        """Return the figures as plain data."""
        return dict(
            images=self.images,
            largest_differences=self.differences,
            detections=self.detections,
            unpaired=self.unpaired,
            scores={k: dict(model=m, file=f, change=f - m) for k, (m, f) in self.scores.items()},
        )


class Images:
    """Hold images spread evenly over a config's test set, and its evaluator.

    Args:
        config: prepared config.
        count: number of images; None takes all.

    Raises:
        InputError: the data set is empty.
    """

    def __init__(self, config: Config, count: int | None):
        self._config = config
        self.task = task_of(config)
        self.dataset = DATASETS.build(config.test_dataloader.dataset)
        if not len(self.dataset):
            raise InputError(
                f"{config.filename}: test_dataloader.dataset holds no images",
                code="no-data",
                where=config.filename,
            )
        whole = len(self.dataset)
        chosen = np.linspace(0, whole - 1, whole if count is None else min(count, whole))
        self.indices = sorted(set(chosen.round().astype(int).tolist()))
        collate = config.test_dataloader.get("collate_fn", dict(type="pseudo_collate"))
        self._collate: Any = FUNCTIONS.get(collate["type"])

    def __iter__(self) -> Iterator[dict]:
        """Yield batches of one image as the test loader makes them, new objects each time."""
        for index in self.indices:
            yield self._collate([self.dataset[index]])

    def evaluate(self, samples: Sequence[Any]) -> dict[str, float]:
        """Return the task's main metrics of predictions on these images alone."""
        found = self.figures(samples)
        return {
            metric.key: found[metric.key]
            for metric in self.task.main_metrics
            if metric.key in found
        }

    def figures(self, samples: Sequence[Any]) -> dict[str, float]:
        """Return all figures of the evaluator for predictions on these images alone."""
        evaluator = Evaluator(self._config.test_evaluator)
        evaluator.dataset_meta = self.dataset.metainfo
        metrics: Any = evaluator.metrics
        for metric in metrics:
            if hasattr(metric, "img_ids"):  # COCO's would count all images of the file as missed
                metric.img_ids = [sample.img_id for sample in samples]
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("WARNING")  # the metrics print tables
        try:
            with redirect_stdout(io.StringIO()):
                for sample in samples:
                    evaluator.process([sample])
                found = evaluator.evaluate(len(samples))
        finally:
            logger.setLevel(level)
        return {key: float(value) for key, value in found.items()}


class BackboneComparison:
    """Compare a file's feature maps with the backbone's own."""

    def __init__(self, model: Any):
        self.model = model

    def reference(self, batch: dict) -> Sequence[Tensor]:
        """Return the model's own feature maps."""
        return self.model.backbone(self.model.data_preprocessor(batch, False)["inputs"])

    def differences(
        self, reference: Sequence[Tensor], outputs: Sequence[Tensor], batch: dict
    ) -> Differences:
        """Measure each map relative to its largest magnitude."""
        pairs = zip(self.model.backbone.out_indices, reference, outputs, strict=True)
        return Differences({f"map{i}": relative_difference(one, other) for i, one, other in pairs})


class FileBackbone(nn.Module):
    """Replace a model's backbone by one that takes its maps from a file."""

    def __init__(self, run: Run, preprocessing: Preprocessing):
        super().__init__()
        self.run = run
        self.preprocessing = preprocessing

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of normalised images, denormalised first: the file normalises them."""
        images = x * self.preprocessing.std + self.preprocessing.mean
        if self.preprocessing.swaps:
            images = images.flip(1)
        return tuple(torch.from_numpy(x) for x in self.run(images.contiguous().numpy()))


@torch.inference_mode()
def compare(
    comparison: Comparison | BackboneComparison, images: Images, runs: Sequence[Run]
) -> list[Agreement]:
    """Run the model and its files on the images, and score all of them.

    A backbone's file is scored in the model, instead of its own backbone.

    Returns:
        One agreement for each file.
    """
    agreements = [Agreement(images.task) for _ in runs]
    model_samples, file_samples = [], [[] for _ in runs]
    for batch in images:
        raw = batch["inputs"][0][None].float().numpy()
        reference = comparison.reference(batch)
        if not isinstance(comparison, BackboneComparison):
            model_samples.append(comparison.sample(reference, batch))
        for agreement, run, samples in zip(agreements, runs, file_samples, strict=True):
            outputs = [torch.from_numpy(np.asarray(x)) for x in run(raw)]
            agreement.finite &= all(bool(x.isfinite().all()) for x in outputs)
            found = comparison.differences(reference, outputs, batch)
            agreement.add(found.largest, found.detections, found.unpaired)
            if not isinstance(comparison, BackboneComparison):
                samples.append(comparison.sample(outputs, batch))
    if model_samples:
        model = images.evaluate(model_samples)
        for agreement, samples in zip(agreements, file_samples, strict=True):
            if agreement.finite:
                file = images.evaluate(samples)
                agreement.scores = {name: (model[name], file[name]) for name in model}
    return agreements


@torch.inference_mode()
def score_in_model(
    model: Any, images: Images, backbone: nn.Module
) -> dict[str, tuple[float, float]]:
    """Return the scores of the model with its own backbone and with the replacement."""
    found = []
    for own in (True, False):
        kept = model.backbone
        model.backbone = kept if own else backbone
        try:
            samples = [model.test_step(batch)[0] for batch in images]
        finally:
            model.backbone = kept
        found.append(images.evaluate(samples))
    return {name: (found[0][name], found[1][name]) for name in found[0]}
