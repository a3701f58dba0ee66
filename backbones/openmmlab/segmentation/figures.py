"""Collect a segmentor's report figures: IoU by class, confusions, worst images."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.evaluation.metrics import IoUMetric

from backbones.openmmlab.data.band_pipelines import shown_bands
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.metainfo import class_colours
from backbones.openmmlab.evaluation.figures import (
    LONGEST_SIDE,
    Worst,
    confusion_triples,
    image_pair,
    read_rgb,
)
from backbones.openmmlab.prediction.drawing import draw_label_map
from backbones.openmmlab.tasks import Sample

from .boundary import BoundaryIoU

LEGEND = 8  # classes named below an image


def segmentation_figures(
    metrics: Sequence[BaseMetric], meta: Mapping, count: int
) -> "SegmentationFigures | None":
    """Return the figures for a segmentor's evaluator; None without an IoUMetric.

    Args:
        metrics: the evaluator's metrics.
        meta: the data set's meta: `classes` and `palette`.
        count: how many of the worst images are kept.
    """
    boundary = next((metric for metric in metrics if isinstance(metric, BoundaryIoU)), None)
    for metric in metrics:
        if isinstance(metric, IoUMetric) and not metric.format_only and meta.get("classes"):
            return SegmentationFigures(
                meta["classes"], meta.get("palette"), metric.ignore_index, count, boundary,
                shown_bands(meta),
            )  # fmt: skip
    return None


class SegmentationFigures:
    """Collect confusions, IoU by class and the worst images of a segmentor.

    Args:
        classes: class names in the order of the labels.
        palette: (classes, 3) RGB, or None for colours of our own.
        ignored: label of pixels that do not count.
        count: how many of the worst images are kept.
        boundary: the metric that has the boundary IoU of each class, if it is measured.
        bands: the bands of the images; None for 8-bit colour.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None,
        ignored: int,
        count: int,
        boundary: BoundaryIoU | None = None,
        bands: Bands | None = None,
    ):
        self.classes = list(classes)
        self.palette = class_colours(len(classes)) if palette is None else np.array(palette)
        self.ignored = ignored
        self.boundary, self.bands = boundary, bands
        self.worst = Worst(count)
        self.confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        self.images = 0

    def add(self, sample: Sample) -> None:
        """Compare one image's `pred_sem_seg` with its `gt_sem_seg`, both (1, H, W)."""
        predicted = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        truth = sample.gt_sem_seg.data.squeeze(0).cpu().numpy()
        count = len(self.classes)
        known = (truth != self.ignored) & (truth < count)
        cells = count * truth[known].astype(np.int64) + predicted[known]
        confusion = np.bincount(cells, minlength=count * count).reshape(count, count)
        self.confusion += confusion
        self.images += 1
        shares = _shares(confusion)["IoU"]
        here = confusion.sum(1) > 0
        score = float(shares[here].mean()) if here.any() else 1.0
        if self.worst.takes(score):
            right = np.trace(confusion) / max(confusion.sum(), 1)
            note = f"{right:.1%} of the pixels right"
            self.worst.add(
                score,
                str(sample.img_path),
                dict(predicted=_shrink(predicted), truth=_shrink(truth), note=note),
            )

    def state(self) -> tuple:
        """Return the state that another rank merges into its own."""
        return self.confusion, self.images, list(self.worst)

    def merge(self, state: tuple) -> None:
        """Add the images of another rank."""
        confusion, images, worst = state
        self.confusion = self.confusion + confusion
        self.images += images
        for score, name, sample in worst:
            self.worst.add(score, name, sample)

    def to_dict(self) -> dict:
        """Return everything in JSON types, with the worst images drawn; shares in [0, 1]."""
        shares = _shares(self.confusion)
        pixels = self.confusion.sum(1) / max(self.confusion.sum(), 1)
        per_class = [
            dict(name=name, pixels=float(pixels[i]), **{k: float(v[i]) for k, v in shares.items()})
            for i, name in enumerate(self.classes)
        ]
        if self.boundary is not None and self.boundary.boundary_iou is not None:
            for row, value in zip(per_class, self.boundary.boundary_iou, strict=True):
                row["boundary IoU"] = value
        cells = {
            (int(i), int(j)): int(self.confusion[i, j]) for i, j in np.argwhere(self.confusion)
        }
        return dict(
            images=self.images,
            classes=self.classes,
            colours=[f"#{bytes(colour).hex()}" for colour in self.palette.astype(np.uint8)],
            per_class=per_class,
            confusion=confusion_triples(cells),
            pictures=self._draw(),
        )

    def _draw(self) -> list[dict]:
        names = tuple(self.classes)
        palette = self.palette.astype(np.uint8)
        pairs = []
        for score, path, kept in self.worst:
            image = read_rgb(path, self.bands)
            if image is None:
                continue
            height, width = kept["truth"].shape
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            truth, prediction = (
                draw_label_map(image, kept[key], names, palette, legend=False)
                for key in ("truth", "predicted")
            )
            both = np.stack([kept["truth"], kept["predicted"]])
            areas = np.bincount(both[(both >= 0) & (both < len(names))], minlength=len(names))
            largest = [int(i) for i in np.argsort(-areas)[:LEGEND] if areas[i]]
            pair = image_pair(path, score, kept["note"], truth, prediction)
            pairs.append({**pair, "classes": largest})
        return pairs


def _shares(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU, recall and precision by class; NaN for a class that never occurs."""
    right = np.diag(confusion).astype(float)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "IoU": right / (truth + predicted - right),
            "recall": right / truth,
            "precision": right / predicted,
        }


def _shrink(labels: np.ndarray) -> np.ndarray:
    """Reduce a label map to the size of the report's images."""
    ratio = min(1.0, LONGEST_SIDE / max(labels.shape))
    size = [max(1, round(side * ratio)) for side in labels.shape[::-1]]
    return cv2.resize(labels.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)
