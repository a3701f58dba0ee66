"""The operators of mmcv that run without a compiled extension."""

from collections.abc import Callable
from typing import Any

from . import (
    focal_loss,
    nms,
    roi_align,
)

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    focal_loss.sigmoid_focal_loss_backward,
    focal_loss.sigmoid_focal_loss_forward,
    nms.nms,
    nms.nms_match,
    nms.softnms,
    roi_align.roi_align_backward,
    roi_align.roi_align_forward,
)
# By their names in `mmcv._ext`.
OPERATORS = {function.__name__: function for function in _FUNCTIONS}
