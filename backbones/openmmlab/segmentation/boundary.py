"""Measure boundary IoU (arXiv:2103.16562): the overlap of two masks near their outlines."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from backbones.errors import InputError

DILATION_RATIO = 0.02  # of the image's diagonal: the paper's for COCO


def boundary_width(height: int, width: int, ratio: float = DILATION_RATIO) -> int:
    """Return the depth of the boundary in an image of this size, in pixels; at least one."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool that are at most `depth` steps from its outline.

    A step goes to any of the eight neighbours. Outside of the image there is no mask, so that an
    object cut off by the image's edge has an outline there (boundary-iou-api, mask_to_boundary).
    """
    ground = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(ground, np.ones((3, 3), np.uint8), iterations=depth)[1:-1, 1:-1]
    return mask & (inner == 0)


def boundary_counts(
    predicted: np.ndarray, truth: np.ndarray, classes: int, ignored: int
) -> np.ndarray:
    """Count intersection and union of the boundaries of each class: (2, classes) int64.

    Args:
        predicted, truth: label maps (H, W).
        classes: number of classes; labels are below it.
        ignored: label of pixels without ground truth; they are in no mask of either map.
    """
    counts = np.zeros((2, classes), dtype=np.int64)
    known = truth != ignored
    depth = boundary_width(*truth.shape)
    present = np.union1d(predicted[known], truth[known])
    for label in present[(present >= 0) & (present < classes)]:
        a = boundary(known & (predicted == label), depth)
        b = boundary(known & (truth == label), depth)
        counts[:, label] = (a & b).sum(), (a | b).sum()
    return counts


@METRICS.register_module()
class BoundaryIoU(BaseMetric):
    """Compute the boundary IoU of each class over all images, and its mean in per cent.

    The pixels of all images are added up by class first, as for mIoU. Classes that appear nowhere
    are left out of the mean.

    Args:
        ignore_index: label of pixels without ground truth.
        collect_device, prefix: mmengine's.

    Attributes:
        boundary_iou: of each class in the last evaluation, NaN for one that appears nowhere. None
            on ranks other than 0.
    """

    def __init__(
        self, ignore_index: int = 255, collect_device: str = "cpu", prefix: str | None = None
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.boundary_iou: list[float] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping]) -> None:
        """Compare a batch's `pred_sem_seg` with its `gt_sem_seg`, both (1, H, W)."""
        assert self.dataset_meta is not None
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted, truth = (
                sample[key]["data"].squeeze(0).cpu().numpy()
                for key in ("pred_sem_seg", "gt_sem_seg")
            )
            self.results.append(boundary_counts(predicted, truth, classes, self.ignore_index))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return `boundary_mIoU`, in per cent with two digits as mmseg's mIoU."""
        shared, covered = np.sum(results, axis=0)
        iou = np.divide(shared, covered, out=np.full(len(covered), np.nan), where=covered > 0)
        self.boundary_iou = iou.tolist()
        mean = np.nanmean(iou) if np.isfinite(iou).any() else np.nan
        return dict(boundary_mIoU=float(np.round(100 * mean, 2)))


def measure_boundaries(config: Config) -> None:
    """Make the test evaluator measure boundaries too: AP of a detector, mIoU of a segmentor.

    Raises:
        InputError: it measures no masks.
    """
    evaluator = config.test_evaluator
    evaluators = list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]
    for metric in evaluators:
        if metric.type == "CocoAP" and "segm" in metric.get("metric", ()):
            metric.boundary = True
            return
        if metric.type == "IoUMetric":
            ignored = metric.get("ignore_index", 255)
            config.test_evaluator = [*evaluators, dict(type="BoundaryIoU", ignore_index=ignored)]
            return
    kinds = ", ".join(str(metric.type) for metric in evaluators)
    raise InputError(
        f"--boundary: {config.filename} has no masks to measure (test_evaluator: {kinds}); it "
        "needs a CocoAP with the metric segm, or an IoUMetric",
        code="unsupported",
        where="test_evaluator",
    )
