"""What an evaluation says beyond its scores: by class and size, confusions, the worst pictures."""

import base64
import heapq
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from PIL import Image
from pycocotools import mask as coco_mask

from backbones.openmmlab.data.metainfo import class_colours
from backbones.openmmlab.prediction.drawing import draw_instances, draw_label_map

SIZES = ("all", "small", "medium", "large")
SCORE = 0.3  # least score of a detection that is counted as one: mmdet's confusion matrix's
IOU = 0.5
LONGEST_SIDE = 560  # of a picture in the report
CLASSES_WITH_CURVES = 100
LEGEND = 8  # classes named below a segmentor's picture


class Worst:
    """The few samples with the lowest score out of many, lowest first.

    Args:
        count: how many are kept.
    """

    def __init__(self, count: int):
        self.count = count
        self._seen = 0  # breaks ties in favour of what came first
        self._heap: list[tuple[float, int, str, dict]] = []

    def takes(self, score: float) -> bool:
        """Whether a sample of this score would be kept."""
        return self.count > 0 and (len(self._heap) < self.count or -score > self._heap[0][0])

    def add(self, score: float, name: str, sample: dict) -> None:
        if self.takes(score):
            push = heapq.heappush if len(self._heap) < self.count else heapq.heappushpop
            self._seen += 1
            push(self._heap, (-score, -self._seen, name, sample))

    def __iter__(self):
        for score, _, name, sample in sorted(self._heap, key=lambda row: (-row[0], row[2])):
            yield -score, name, sample


class DetectionFigures:
    """Confusions and the worst images of a detector.

    A detection with a score of at least 0.3 is right where it overlaps an object of its class that
    no better one has taken, by an IoU of at least 0.5. What is left after that is matched across
    classes: those are confusions. Detections on a crowd are left out.

    Args:
        classes: names of the classes that count.
        coco: the ground truth, as pycocotools' or faster-coco-eval's COCO.
        pictures: how many of the worst images are kept.
    """

    def __init__(self, classes: Sequence[str], coco: object, pictures: int):
        # mmdet's labels follow the order of the annotation file, whatever that of the classes is.
        ids = coco.getCatIds(catNms=list(classes))
        self.classes = [coco.cats[i]["name"] for i in ids]
        self.labels = {category: label for label, category in enumerate(ids)}
        self.rows: dict[object, list] = {}
        for row in coco.dataset.get("annotations", []):
            if row["category_id"] in self.labels and not row.get("ignore"):
                self.rows.setdefault(row["image_id"], []).append(row)
        self.worst = Worst(pictures)
        self.confusion: Counter[tuple[int, int]] = Counter()
        self.images = 0

    def add(self, sample: BaseDataElement) -> None:
        """Count one image's `pred_instances`, in pixels of the original image."""
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
        """What another process adds to its own by `merge`."""
        return self.confusion, self.images, list(self.worst)

    def merge(self, state: tuple) -> None:
        confusion, images, worst = state
        self.confusion.update(confusion)
        self.images += images
        for score, name, sample in worst:
            self.worst.add(score, name, sample)

    def figures(self, precision: Mapping[str, np.ndarray]) -> dict:
        """Everything of it as JSON can hold it, and the pictures.

        Args:
            precision: of faster-coco-eval by kind (bbox, segm): (10 IoU thresholds, 101 recalls,
                classes, 4 sizes, limits of detections), -1 where there is no object.
        """
        objects = Counter(
            self.labels[row["category_id"]]
            for rows in self.rows.values()
            for row in rows
            if not row.get("iscrowd")
        )
        # Here the order is that of the category ids.
        order = [self.labels[k] for k in sorted(self.labels)]
        per_class = [dict(name=n, objects=objects[i]) for i, n in enumerate(self.classes)]
        sizes, curves = {}, {}
        for kind, values in precision.items():
            values = np.where(values[..., -1] < 0, np.nan, values[..., -1])  # (T, R, K, A)
            sizes[kind] = {name: _mean(values[..., a]) for a, name in enumerate(SIZES)}
            for k, label in enumerate(order):
                of_class = values[:, :, k]
                per_class[label][kind] = {
                    "AP": _mean(of_class[..., 0]),
                    "AP50": _mean(of_class[0, :, 0]),
                    "AP75": _mean(of_class[5, :, 0]),
                    **{
                        f"AP {name}": _mean(of_class[..., a + 1])
                        for a, name in enumerate(SIZES[1:])
                    },
                }
            most = sorted(range(len(order)), key=lambda k: -objects[order[k]])
            curves[kind] = dict(
                mean={
                    "IoU 0.50": _curve(values[0, :, :, 0]),
                    "IoU 0.75": _curve(values[5, :, :, 0]),
                    "IoU 0.50 to 0.95": _curve(values[..., 0].transpose(1, 0, 2).reshape(101, -1)),
                },
                classes=[
                    [order[k], _curve(values[0, :, k : k + 1, 0])]
                    for k in most[:CLASSES_WITH_CURVES]
                ],
            )
        return dict(
            task="detection",
            images=self.images,
            classes=self.classes,
            per_class=per_class,
            sizes=sizes,
            precision_recall=curves,
            confusion=_triples(self.confusion),
            pictures=self._draw(),
        )

    def _draw(self) -> list[dict]:
        names = tuple(" ".join(name.split()) for name in self.classes)
        pictures = []
        for score, path, kept in self.worst:
            image = _read(path)
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
            pictures.append(_pair(path, score, kept["note"], truth, prediction))
        return pictures


class SegmentationFigures:
    """Confusions, IoU by class and the worst images of a segmentor.

    Args:
        classes: class names in the order of the labels.
        palette: (classes, 3) RGB, or None for colours of our own.
        ignored: label of pixels that do not count.
        pictures: how many of the worst images are kept.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None,
        ignored: int,
        pictures: int,
    ):
        self.classes = list(classes)
        self.palette = class_colours(len(classes)) if palette is None else np.array(palette)
        self.ignored = ignored
        self.worst = Worst(pictures)
        self.confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        self.images = 0

    def add(self, sample: BaseDataElement) -> None:
        """Count one image's `pred_sem_seg` against its `gt_sem_seg`, both (1, H, W)."""
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
        """What another process adds to its own by `merge`."""
        return self.confusion, self.images, list(self.worst)

    def merge(self, state: tuple) -> None:
        confusion, images, worst = state
        self.confusion = self.confusion + confusion
        self.images += images
        for score, name, sample in worst:
            self.worst.add(score, name, sample)

    def figures(self) -> dict:
        """Everything of it as JSON can hold it, and the pictures; shares in [0, 1]."""
        shares = _shares(self.confusion)
        pixels = self.confusion.sum(1) / max(self.confusion.sum(), 1)
        per_class = [
            dict(name=name, pixels=float(pixels[i]), **{k: float(v[i]) for k, v in shares.items()})
            for i, name in enumerate(self.classes)
        ]
        rows, columns = np.nonzero(self.confusion)
        counts = dict(
            zip(zip(rows.tolist(), columns.tolist(), strict=True),
                self.confusion[rows, columns].tolist(), strict=True)
        )  # fmt: skip
        return dict(
            task="segmentation",
            images=self.images,
            classes=self.classes,
            colours=[f"#{bytes(colour).hex()}" for colour in self.palette.astype(np.uint8)],
            per_class=per_class,
            confusion=_triples(counts),
            pictures=self._draw(),
        )

    def _draw(self) -> list[dict]:
        names = tuple(self.classes)
        palette = self.palette.astype(np.uint8)
        pictures = []
        for score, path, kept in self.worst:
            image = _read(path)
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
            pair = _pair(path, score, kept["note"], truth, prediction)
            pictures.append({**pair, "classes": largest})
        return pictures


def match(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray,
    true_labels: np.ndarray,
) -> np.ndarray:
    """The object that each detection is taken for, (n,) indices, -1 for none.

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
    """Which boxes (n, 4) lie by half or more in a crowd's box."""
    inside = np.zeros(len(boxes), dtype=bool)
    for row in crowds:
        x, y, width, height = row["bbox"]
        low = np.maximum(boxes[:, :2], [x, y])
        high = np.minimum(boxes[:, 2:], [x + width, y + height])
        shared = np.clip(high - low, 0, None).prod(-1)
        areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-9)
        inside |= shared / areas >= 0.5
    return inside


def _shares(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """IoU, recall and precision by class; NaN for a class that is nowhere."""
    right = np.diag(confusion).astype(float)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "IoU": right / (truth + predicted - right),
            "recall": right / truth,
            "precision": right / predicted,
        }


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _curve(values: np.ndarray) -> list[float]:
    """Means over the columns of (101, n), rounded to what a chart shows."""
    return [round(_mean(row), 4) for row in values]


def _triples(counts: Mapping[tuple[int, int], int]) -> list[list[int]]:
    return [[i, j, int(n)] for (i, j), n in sorted(counts.items()) if n]


def _read(path: str) -> np.ndarray | None:
    """An image in RGB; None if it is no longer there."""
    image = cv2.imread(path)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _shrink(labels: np.ndarray) -> np.ndarray:
    """A label map with its longest side as in the report at most."""
    ratio = min(1.0, LONGEST_SIDE / max(labels.shape))
    size = [max(1, round(side * ratio)) for side in labels.shape[::-1]]
    return cv2.resize(labels.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)


def _decode(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) of polygons or run lengths as annotation files hold them."""
    height, width = size
    if not segmentation:
        return np.zeros(size, dtype=bool)
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return coco_mask.decode(code).astype(bool)


def _instances(image, boxes, labels, scores, names, masks) -> Image.Image:
    masks = np.array(masks).reshape(-1, *image.shape[:2]) if masks is not None else None
    return draw_instances(image, boxes, labels, scores, names, masks)


def _pair(path: str, score: float, note: str, truth: Image.Image, prediction: Image.Image) -> dict:
    return dict(
        file=Path(path).name, score=score, note=note,
        truth=_as_address(truth), prediction=_as_address(prediction),
    )  # fmt: skip


def _as_address(picture: Image.Image) -> str:
    """A picture as a `data:` address."""
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
