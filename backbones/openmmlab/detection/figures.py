"""Collect a detector's report figures: AP by class and size, confusions, worst images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmengine.evaluator import BaseMetric
from PIL import Image
from pycocotools import mask as coco_mask

from backbones.openmmlab.data.band_pipelines import shown_bands
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.masks import encoded
from backbones.openmmlab.evaluation.figures import Worst, confusion_triples, image_pair, read_rgb
from backbones.openmmlab.prediction.drawing import draw_instances
from backbones.openmmlab.tasks import Sample

from .coco_ap import CocoAP, ground_truth
from .panoptic_figures import PanopticFigures, panoptic_figures

SIZES = ("all", "small", "medium", "large")
SCORE = 0.3  # minimum score of a detection that counts, as in mmdet's confusion matrix
IOU = 0.5
IOUS = 10  # thresholds of COCO's AP: 0.50, 0.55, ... 0.95
CLASSES_WITH_CURVES = 100
KINDS = {"bbox": "box", "segm": "mask", "boundary": "boundary"}


def detection_figures(
    metrics: Sequence[BaseMetric], meta: Mapping, count: int
) -> "DetectionFigures | PanopticFigures | None":
    """Return the figures for a detector's evaluator; None without a COCO metric.

    Those of things and stuff go before those of instances, where both are measured.

    Args:
        metrics: the evaluator's metrics.
        meta: the data set's meta: `classes`, and `bands` if the images have others than colour.
        count: how many of the worst images are kept.
    """
    if (panoptic := panoptic_figures(metrics, meta, count)) is not None:
        return panoptic
    for metric in metrics:
        if isinstance(metric, CocoMetric) and not metric.format_only and meta.get("classes"):
            if ground_truth(metric) is not None:
                return DetectionFigures(meta["classes"], metric, count, shown_bands(meta))
    return None


class DetectionFigures:
    """Collect confusions, AP by class and size, and the worst images of a detector.

    A detection with a score of at least 0.3 is right where it overlaps an object of its class that
    no better one has taken, by an IoU of at least 0.5. What is left after that is matched across
    classes: those are confusions. Detections on a crowd are left out.

    Args:
        classes: names of the classes that count.
        metric: has the ground truth and, if it is a `CocoAP`, the precision.
        count: how many of the worst images are kept.
        bands: the bands of the images; None for 8-bit colour.
    """

    def __init__(
        self,
        classes: Sequence[str],
        metric: CocoMetric,
        count: int,
        bands: Bands | None = None,
    ):
        coco = ground_truth(metric)
        assert coco is not None
        self.metric, self.bands = metric, bands
        # mmdet's labels follow the order of the annotation file, whatever that of the classes is.
        ids = coco.getCatIds(catNms=list(classes))
        self.classes = [coco.cats[i]["name"] for i in ids]
        self.labels = {category: label for label, category in enumerate(ids)}
        self.rows: dict[object, list] = {}
        for row in coco.dataset.get("annotations", []):
            if row["category_id"] in self.labels:
                self.rows.setdefault(row["image_id"], []).append(row)
        self.worst = Worst(count)
        self.confusion: Counter[tuple[int, int]] = Counter()
        self.images = 0

    def add(self, sample: Sample) -> None:
        """Add one image's `pred_instances`, in pixels of the original image."""
        found = sample.pred_instances.detach().cpu()
        kept = found[found.scores >= SCORE]
        boxes = kept.bboxes.float().numpy()
        labels = kept.labels.numpy()
        scores = kept.scores.float().numpy()
        rows = self.rows.get(sample.img_id, [])
        objects = [row for row in rows if not row.get("iscrowd")]
        crowds = [row for row in rows if row.get("iscrowd")]
        truth = np.array([row["bbox"] for row in objects], dtype=float).reshape(-1, 4)
        truth[:, 2:] += truth[:, :2]
        true_labels = np.array([self.labels[row["category_id"]] for row in objects], dtype=int)
        ignored = _on_crowds(boxes, crowds)
        pairs = match(boxes, labels, scores, truth, true_labels)
        nothing = len(self.classes)
        right = 0
        matched = set()
        for i, j in enumerate(pairs):
            if j >= 0:
                matched.add(j)
                right += labels[i] == true_labels[j]
                self.confusion[int(true_labels[j]), int(labels[i])] += 1
            elif not ignored[i]:
                self.confusion[nothing, int(labels[i])] += 1
        for j, label in enumerate(true_labels):
            if j not in matched:
                self.confusion[int(label), nothing] += 1
        self.images += 1

        counted = int(sum((j >= 0) or not ignored[i] for i, j in enumerate(pairs)))
        total = counted + len(objects)
        score = 2 * right / total if total else 1.0
        if self.worst.takes(score):
            masks = None
            if "masks" in kept:
                masks = kept.masks
                if hasattr(masks, "numpy"):
                    stack = np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0))
                    masks = coco_mask.encode(stack) if stack.shape[2] else []
            note = f"{right} of {len(objects)} objects found, {counted - right} false"
            self.worst.add(
                score,
                str(sample.img_path),
                dict(
                    boxes=boxes, labels=labels, scores=scores, masks=masks, note=note,
                    image=sample.img_id, size=tuple(sample.ori_shape[:2]),
                ),
            )  # fmt: skip

    def state(self) -> tuple:
        """Return the state that another rank merges into its own."""
        return self.confusion, self.images, list(self.worst)

    def merge(self, state: tuple) -> None:
        """Add the images of another rank."""
        confusion, images, worst = state
        self.confusion.update(confusion)
        self.images += images
        for score, name, sample in worst:
            self.worst.add(score, name, sample)

    def to_dict(self) -> dict:
        """Return everything in JSON types, with the worst images drawn."""
        objects = Counter(
            self.labels[row["category_id"]]
            for rows in self.rows.values()
            for row in rows
            if not row.get("iscrowd")
        )
        per_class: list[dict] = [
            dict(name=name, objects=objects[i]) for i, name in enumerate(self.classes)
        ]
        most = sorted(range(len(per_class)), key=lambda label: -objects[label])
        sizes, curves = {}, {}
        precision = self.metric.precision if isinstance(self.metric, CocoAP) else {}
        if any(len(values) != IOUS for values in precision.values()):
            precision = {}  # AP50 and AP75 are at other places, or not there
        for kind, values in precision.items():  # (IoU, recall, class, size)
            sizes[kind] = {name: _mean(values[..., a]) for a, name in enumerate(SIZES)}
            for label, row in enumerate(per_class):
                of_class = values[:, :, label]
                row[kind] = {
                    "AP": _mean(of_class[..., 0]),
                    "AP50": _mean(of_class[0, :, 0]),
                    "AP75": _mean(of_class[5, :, 0]),
                    **{f"AP {name}": _mean(of_class[..., a]) for a, name in enumerate(SIZES) if a},
                }
            curves[kind] = dict(
                mean={
                    "IoU 0.50": _curve(values[0, :, :, 0]),
                    "IoU 0.75": _curve(values[5, :, :, 0]),
                    "IoU 0.50 to 0.95": _curve(values[..., 0].transpose(1, 0, 2).reshape(101, -1)),
                },
                classes=[
                    [label, _curve(values[0, :, label : label + 1, 0])]
                    for label in most[:CLASSES_WITH_CURVES]
                ],
            )
        return dict(
            images=self.images,
            classes=self.classes,
            kinds={kind: KINDS[kind] for kind in precision},
            per_class=per_class,
            sizes=sizes,
            precision_recall=curves,
            confusion=confusion_triples(self.confusion),
            pictures=self._draw(),
        )

    def _draw(self) -> list[dict]:
        names = tuple(" ".join(name.split()) for name in self.classes)
        pairs = []
        for score, path, kept in self.worst:
            image = read_rgb(path, self.bands)
            if image is None:
                continue
            rows = [row for row in self.rows.get(kept["image"], []) if not row.get("iscrowd")]
            boxes = np.array([row["bbox"] for row in rows], dtype=float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = np.array([self.labels[row["category_id"]] for row in rows], dtype=int)
            drawn = any(row.get("segmentation") for row in rows)
            masks = [_decode(row.get("segmentation"), kept["size"]) for row in rows]
            truth = _instances(image, boxes, labels, None, names, masks if drawn else None)
            masks = kept["masks"]
            if masks is not None:
                masks = [coco_mask.decode(code).astype(bool) for code in masks]
            prediction = _instances(
                image, kept["boxes"], kept["labels"], kept["scores"], names, masks
            )
            pairs.append(image_pair(path, score, kept["note"], truth, prediction))
        return pairs


def match(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray,
    true_labels: np.ndarray,
) -> np.ndarray:
    """Return the index of the object that each detection matches: (n,), -1 for none.

    Best scores first, each takes the free object that it overlaps most, by 0.5 at least: those of
    its own class in a first round, any other in a second.

    Args:
        boxes, truth: (n, 4) and (m, 4) x1, y1, x2, y2.
        labels, scores, true_labels: (n,), (n,) and (m,).
    """
    pairs = np.full(len(boxes), -1)
    if not len(boxes) or not len(truth):
        return pairs
    overlap = _iou(boxes, truth)
    free = np.ones(len(truth), dtype=bool)
    same = labels[:, None] == true_labels[None]
    for allowed in (same, ~same):
        for i in np.argsort(-scores, kind="stable"):
            if pairs[i] >= 0:
                continue
            candidates = np.where(free & allowed[i], overlap[i], 0)
            j = int(candidates.argmax())
            if candidates[j] >= IOU:
                pairs[i] = j
                free[j] = False
    return pairs


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def _on_crowds(boxes: np.ndarray, crowds: list[dict]) -> np.ndarray:
    """Return which boxes (n, 4) lie by half or more in a crowd's box."""
    inside = np.zeros(len(boxes), dtype=bool)
    for row in crowds:
        x, y, width, height = row["bbox"]
        low = np.maximum(boxes[:, :2], [x, y])
        high = np.minimum(boxes[:, 2:], [x + width, y + height])
        shared = np.clip(high - low, 0, None).prod(-1)
        areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-9)
        inside |= shared / areas >= 0.5
    return inside


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _curve(values: np.ndarray) -> list[float]:
    """Average the columns of (101, n), rounded to the precision of a chart."""
    return [round(_mean(row), 4) for row in values]


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode the polygons or run lengths of an annotation file into a mask (H, W)."""
    if not segmentation:
        return np.zeros(size, dtype=bool)
    return coco_mask.decode(encoded(segmentation, size)).astype(bool)


def _instances(image, boxes, labels, scores, names, masks) -> Image.Image:
    masks = np.array(masks).reshape(-1, *image.shape[:2]) if masks is not None else None
    return draw_instances(image, boxes, labels, scores, names, masks)
