"""Store detections with masks cropped to their objects, so that memory is bounded."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask

from backbones.openmmlab.data.masks import RunLengths, encoded
from backbones.openmmlab.tasks import Sample


class CroppedMask(NamedTuple):
    """Hold a mask in COCO run lengths whose first pixel is (left, top); it is empty elsewhere."""

    left: int
    top: int
    runs: RunLengths

    @classmethod
    def of(cls, mask: np.ndarray, left: int = 0, top: int = 0) -> "CroppedMask":
        """Crop a bool array (H, W), whose first pixel is (left, top), to its true pixels."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(left, top, coco_mask.encode(np.zeros((0, 0), np.uint8, order="F")))
        crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        runs = coco_mask.encode(np.asfortranarray(crop, dtype=np.uint8))
        return cls(left + int(columns[0]), top + int(rows[0]), runs)

    @classmethod
    def union(cls, masks: "Iterable[CroppedMask]") -> "CroppedMask":
        """Unite the masks of one image."""
        masks = [mask for mask in masks if mask.area]
        if not masks:
            return cls.of(np.zeros((0, 0), bool))
        left, top = min(mask.left for mask in masks), min(mask.top for mask in masks)
        right = max(mask.left + mask.runs["size"][1] for mask in masks)
        bottom = max(mask.top + mask.runs["size"][0] for mask in masks)
        window = (left, top, right, bottom)
        parts: list[Any] = [mask.within(window) for mask in masks]
        return cls(left, top, coco_mask.merge(parts))

    @property
    def area(self) -> int:
        return int(coco_mask.area(self.runs))

    @property
    def pixels(self) -> np.ndarray:
        """Return the mask as bool (h, w), whose first pixel is (left, top)."""
        return coco_mask.decode(self.runs).astype(bool)

    def moved(self, x: int, y: int) -> "CroppedMask":
        return self._replace(left=self.left + x, top=self.top + y)

    def scaled(self, factor: float) -> tuple[int, int, np.ndarray]:
        """Resize with nearest neighbours; return (left, top, pixels) at `factor` times the size."""
        height, width = self.runs["size"]
        rows, inside_rows = _nearest(self.top, height, factor)
        columns, inside_columns = _nearest(self.left, width, factor)
        if not len(rows) or not len(columns):
            return 0, 0, np.zeros((0, 0), bool)
        return int(columns[0]), int(rows[0]), self.pixels[np.ix_(inside_rows, inside_columns)]

    def within(self, window: tuple[int, int, int, int]) -> RunLengths:
        """Clip to a window (left, top, right, bottom), as COCO run lengths of the window's size.

        No array of the window's size is allocated.
        """
        left, top, right, bottom = window
        height, width = bottom - top, right - left
        first_row, first_column = max(top - self.top, 0), max(left - self.left, 0)
        crop = self.pixels[first_row : bottom - self.top, first_column : right - self.left]
        x, y = self.left + first_column - left, self.top + first_row - top
        if bottom <= self.top or right <= self.left:
            crop = crop[:0, :0]
        # Run lengths go down the columns: where a run begins or ends in each, then in the window.
        columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)
        columns[:, 1:-1] = crop.T
        column, row = np.nonzero(np.diff(columns, axis=1))
        at = (x + column.astype(np.int64)) * height + y + row
        # A run to the end of a column goes on at the beginning of the next.
        joined = np.flatnonzero(at[1:-1:2] == at[2::2])
        at = np.delete(at, np.concatenate([2 * joined + 1, 2 * joined + 2]))
        counts = np.diff(at, prepend=0, append=height * width).tolist()
        if len(counts) > 1 and counts[-1] == 0:
            counts.pop()
        return encoded(dict(size=[height, width], counts=counts), (height, width))


def _nearest(first: int, length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return positions at another scale and the nearest source positions, counted from `first`."""
    positions = np.arange(int(first * factor), int(np.ceil((first + length) * factor)) + 1)
    sources = np.floor((positions + 0.5) / factor).astype(int) - first
    inside = (sources >= 0) & (sources < length)
    return positions[inside], sources[inside]


@dataclass
class Instances:
    """Hold the detections of one image.

    Attributes:
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        scores: (n,) in [0, 1].
        labels: (n,) indices of classes.
        masks: n masks, or None for a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[CroppedMask] | None = None

    @classmethod
    def of(cls, predicted: Sample) -> "Instances":
        """Convert a sample's `pred_instances`: bboxes, scores, labels and masks, if present."""
        masks = None
        if "masks" in predicted:
            masks = [CroppedMask.of(mask.cpu().numpy()) for mask in predicted.masks]
        return cls(
            predicted.bboxes.float().cpu().numpy(),
            predicted.scores.float().cpu().numpy(),
            predicted.labels.cpu().numpy(),
            masks,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, which: np.ndarray) -> "Instances":
        """Select instances by a bool array (n,) or indices."""
        which = np.arange(len(self))[which]
        masks = None if self.masks is None else [self.masks[i] for i in which]
        return Instances(self.boxes[which], self.scores[which], self.labels[which], masks)

    def moved(self, x: int, y: int) -> "Instances":
        """Shift to an image in which this one starts at (x, y)."""
        masks = None if self.masks is None else [mask.moved(x, y) for mask in self.masks]
        boxes = self.boxes + np.array([x, y, x, y], self.boxes.dtype)
        return Instances(boxes, self.scores, self.labels, masks)

    def coco(self, height: int, width: int) -> list[dict]:
        """Return COCO annotations without ids in an image of this size; category_id = label + 1."""
        rows = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            row: dict[str, Any] = dict(
                category_id=int(self.labels[i]) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                score=float(self.scores[i]),
                iscrowd=0,
            )
            if self.masks is not None:
                runs = self.masks[i].within((0, 0, width, height))
                counts = cast(bytes, runs["counts"]).decode()
                row["segmentation"] = dict(size=runs["size"], counts=counts)
                row["area"] = float(self.masks[i].area)
            rows.append(row)
        return rows
