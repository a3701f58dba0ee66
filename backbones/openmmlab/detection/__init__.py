"""Register what a detection config needs: mmdet, loading, RoI heads, TTA of masks, COCO AP."""

from backbones.openmmlab.registration import register

register("mmdet")

from backbones.openmmlab.data import in_threes, loading
from backbones.openmmlab.evaluation import corruption

from . import coco_ap, data_preprocessor, mask_tta, roi_heads
from .task import DETECTION

__all__ = [
    "DETECTION", "coco_ap", "corruption", "data_preprocessor", "in_threes", "loading", "mask_tta",
    "roi_heads",
]  # fmt: skip
