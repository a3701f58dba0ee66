"""Store a panoptic prediction: each pixel's segment, and each segment's class."""

from dataclasses import dataclass

import numpy as np

from backbones.openmmlab.tasks import Sample

# mmdet writes a pixel as its class + 1000 * the number of its object; stuff has no number.
OFFSET = 1000


@dataclass
class Segments:
    """Hold the segments of one image.

    Attributes:
        numbers: (H, W) int32, each pixel's segment from 1; 0 where there is none.
        labels: (n,) indices of classes, of segment 1 first.
    """

    numbers: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, sample: Sample, classes: int, has_void_zeros: bool = False) -> "Segments":
        """Convert a sample's `pred_panoptic_seg`.

        Args:
            sample: a panoptic model's sample.
            classes: the number of classes; pixels of higher classes have no segment.
            has_void_zeros: whether 0 means that there is no segment, as in a sample that mmdet's
                metric has seen.
        """
        values = sample.pred_panoptic_seg.sem_seg[0].cpu().numpy()
        found, inverse = np.unique(values, return_inverse=True)
        real = found % OFFSET < classes
        if has_void_zeros:
            real &= found > 0
        numbers = np.where(real, np.cumsum(real), 0)
        return cls(numbers[inverse].reshape(values.shape).astype(np.int32), found[real] % OFFSET)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label_map(self) -> np.ndarray:
        """Return each pixel's class (H, W), int32; -1 where there is no segment."""
        return np.concatenate([[-1], self.labels]).astype(np.int32)[self.numbers]

    @property
    def colours(self) -> np.ndarray:
        """Return the segments' numbers as COCO's panoptic PNGs hold them, (H, W, 3) uint8."""
        places = [self.numbers // 256**place % 256 for place in range(3)]
        return np.stack(places, axis=-1).astype(np.uint8)

    def coco(self) -> list[dict]:
        """Return COCO's rows of the segments, `segments_info`; category_id = label + 1."""
        areas = np.bincount(self.numbers.ravel(), minlength=len(self) + 1)[1:]
        return [
            dict(id=i, category_id=int(label) + 1, area=int(area))
            for i, (label, area) in enumerate(zip(self.labels, areas, strict=True), start=1)
        ]
