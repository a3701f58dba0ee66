"""What a detection config needs registered: mmdet, our loading, RoI heads, masks' TTA, COCO AP."""

from .registration import register

register("mmdet")

from . import mask_tta, roi_heads  # noqa: E402, F401
from .data import loading  # noqa: E402, F401
from .evaluation import coco_ap, corruption  # noqa: E402, F401
