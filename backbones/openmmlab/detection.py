"""What a detection config needs registered: mmdet, our loading, RoI heads, masks' TTA, COCO AP."""

from .registration import register

register("mmdet")

from . import mask_tta, roi_heads  # noqa: E402, F401
