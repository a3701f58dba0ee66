"""Hold the prediction of one image: draw it, and convert it for COCO and other libraries."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from backbones.atomic_write import atomic_path
from backbones.errors import InputError
from backbones.openmmlab.data.decoding import read_image
from backbones.openmmlab.tasks import Sample
from backbones.packages import require

from .drawing import (
    class_colours,
    draw_instances,
    draw_label_map,
    draw_scores,
    draw_segments,
)
from .instances import Instances
from .segments import Segments

Prediction = Instances | Segments | np.ndarray | list[tuple[int, str, float]]
BEST = 5  # number of classes in a classifier's results
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def results(sample: Sample, classes: Sequence[str]) -> Prediction:
    """Return the instances, the segments of a panoptic model, the labels (H, W), or the best
    classes as (label, name, score).
    """
    if "scores" not in sample:
        return prediction(sample, len(classes))
    scores, labels = sample.scores.float().cpu().topk(min(BEST, len(classes)))
    best = zip(labels.tolist(), scores.tolist(), strict=True)
    return [(label, classes[int(label)], score) for label, score in best]


class Drawing:
    """Draw the predictions of a model.

    Args:
        classes: class names in the order of the labels.
        palette: (classes, 3) uint8 RGB; None for default colours.
    """

    def __init__(self, classes: Sequence[str], palette: np.ndarray | None):
        self.classes = tuple(classes)
        self.palette = class_colours(len(self.classes)) if palette is None else palette

    def __call__(self, image: np.ndarray, found: Prediction, score: float) -> Image.Image:
        """Draw a prediction over its image.

        Args:
            image: (H, W, 3) uint8 BGR.
            found: the prediction.
            score: minimum score of a drawn instance.
        """
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if isinstance(found, Instances):
            drawn = found[found.scores >= score]
            return draw_instances(
                rgb, drawn.boxes, drawn.labels, drawn.scores, self.classes, drawn.masks
            )
        if isinstance(found, Segments):
            return draw_segments(rgb, found, self.classes, self.palette)
        if isinstance(found, np.ndarray):
            return draw_label_map(rgb, found, self.classes, self.palette)
        return draw_scores(rgb, [name for _, name, _ in found], np.array([s for *_, s in found]))


class Result:
    """Hold the prediction of one image.

    The attributes of mmengine's sample are available too: `pred_instances`,
    `pred_panoptic_seg`, `pred_sem_seg`, `scores`.

    Attributes:
        sample: the sample that the model returned.
        classes: class names in the order of the labels.
        palette: (classes, 3) uint8 RGB of the data set, or None.
    """

    def __init__(
        self,
        image: str | os.PathLike | np.ndarray,
        sample: Sample,
        classes: Sequence[str],
        palette: np.ndarray | None,
    ):
        self._given = image
        self.sample, self.classes, self.palette = sample, tuple(classes), palette

    def __getattr__(self, name: str) -> Any:
        if name == "sample":  # not set yet, as in a copy
            raise AttributeError(name)
        return getattr(self.sample, name)

    def __contains__(self, name: str) -> bool:
        return name in self.sample

    @cached_property
    def found(self) -> Prediction:
        """Return the instances, segments, labels (H, W), or best classes; see `results`."""
        return results(self.sample, self.classes)

    @property
    def image(self) -> np.ndarray:
        """Return the image (H, W, 3), uint8 in BGR order, as the model saw it."""
        given = self._given
        return given if isinstance(given, np.ndarray) else read_image(Path(given))

    def drawn(self, score: float = 0.5) -> Image.Image:
        """Draw the prediction over its image.

        Args:
            score: minimum score of a drawn instance.
        """
        return Drawing(self.classes, self.palette)(self.image, self.found, score)

    def save(self, path: str | os.PathLike, score: float = 0.5) -> Path:
        """Draw the prediction and write the image to a file atomically.

        Args:
            path: ends in .jpg, .png or .webp; its folder exists.
            score: minimum score of a drawn instance.

        Returns:
            The path.

        Raises:
            InputError: the name has another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path}: the name must end in {', '.join(FORMATS)}", code="bad-value", where=path
            )
        picture = self.drawn(score)
        with atomic_path(path) as part:
            picture.save(part, format=FORMATS[path.suffix.lower()])
        return path

    def to_coco_panoptic(self, image_id: int = 1) -> tuple[dict, Image.Image]:
        """Return a panoptic model's segments in COCO's format.

        Returns:
            The annotation with its `segments_info`, whose `category_id` is the label + 1, and the
            image whose colours are the segments' numbers, to be saved under its `file_name`.

        Raises:
            InputError: the model is not panoptic.
        """
        found = self.found
        if not isinstance(found, Segments):
            raise InputError(
                "to_coco_panoptic: requires a panoptic model",
                code="unsupported",
                where="to_coco_panoptic",
            )
        row = dict(image_id=image_id, file_name=f"{image_id}.png", segments_info=found.coco())
        return row, Image.fromarray(found.colours)

    def to_coco(self, image_id: int = 1) -> list[dict]:
        """Return a detector's instances as COCO's annotations with scores.

        `category_id` is the label + 1, boxes are x, y, width, height in pixels, and masks are
        COCO's run lengths.

        Raises:
            InputError: the model is not a detector.
        """
        height, width = self.image.shape[:2]
        rows = self._instances("to_coco").coco(height, width)
        return [dict(id=i, image_id=image_id, **row) for i, row in enumerate(rows, start=1)]

    def to_supervision(self) -> Any:
        """Return a detector's instances as `supervision.Detections`, with class names.

        Raises:
            InputError: the model is not a detector, or supervision is not installed.
        """
        found = self._instances("to_supervision")
        require("to_supervision", "supervision")
        import supervision  # an optional dependency

        height, width = self.image.shape[:2]
        masks = None
        if found.masks is not None:
            masks = np.zeros((len(found), height, width), bool)
            for mask, cropped in zip(masks, found.masks, strict=True):
                pixels = cropped.pixels
                rows = slice(cropped.top, cropped.top + pixels.shape[0])
                mask[rows, cropped.left : cropped.left + pixels.shape[1]] = pixels
        names = np.array([self.classes[label] for label in found.labels], dtype=str)
        return supervision.Detections(
            xyxy=found.boxes.reshape(-1, 4),
            mask=masks,
            confidence=found.scores,
            class_id=found.labels.astype(int),
            data={"class_name": names},
        )

    def _instances(self, method: str) -> Instances:
        if "pred_instances" in self.sample:  # of a panoptic model too, if it returns any
            return Instances.of(self.sample.pred_instances)
        if not isinstance(self.found, Instances):
            raise InputError(
                f"{method}: requires a detector; .found holds a segmentor's labels or a "
                "classifier's scores",
                code="unsupported",
                where=method,
            )
        return self.found


def prediction(sample: Sample, classes: int) -> Instances | Segments | np.ndarray:
    """Return the instances, segments or labels of a sample, as `TiledPredictor` returns them."""
    if "pred_panoptic_seg" in sample:
        return Segments.of(sample, classes)
    if "pred_instances" in sample:
        return Instances.of(sample.pred_instances)
    return sample.pred_sem_seg.data[0].cpu().numpy().astype(label_dtype(classes))


def label_dtype(classes: int) -> type:
    """Return the dtype of label maps: uint8, or uint16 for more than 256 classes."""
    return np.uint8 if classes <= 256 else np.uint16
