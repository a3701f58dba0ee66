"""What a detection config needs registered: mmdet, our loading, RoI heads, masks' TTA, COCO AP."""

from backbones.openmmlab.registration import register

register("mmdet")

from backbones.openmmlab.data import loading
from backbones.openmmlab.evaluation import corruption

from . import coco_ap, mask_tta, roi_heads

__all__ = ["coco_ap", "corruption", "loading", "mask_tta", "roi_heads"]
