"""List the operators of mmcv that run without a compiled extension."""

from collections.abc import Callable
from typing import Any

from . import (
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    ms_deform_attn,
    nms,
    psa_mask,
    roi_align,
)

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    carafe.carafe_backward,
    carafe.carafe_forward,
    carafe.carafe_naive_backward,
    carafe.carafe_naive_forward,
    deform_conv.deform_conv_backward_input,
    deform_conv.deform_conv_backward_parameters,
    deform_conv.deform_conv_forward,
    deform_conv.modulated_deform_conv_backward,
    deform_conv.modulated_deform_conv_forward,
    deform_roi_pool.deform_roi_pool_backward,
    deform_roi_pool.deform_roi_pool_forward,
    focal_loss.sigmoid_focal_loss_backward,
    focal_loss.sigmoid_focal_loss_forward,
    masked_conv.masked_col2im_forward,
    masked_conv.masked_im2col_forward,
    ms_deform_attn.ms_deform_attn_backward,
    ms_deform_attn.ms_deform_attn_forward,
    nms.nms,
    nms.nms_match,
    nms.softnms,
    psa_mask.psamask_backward,
    psa_mask.psamask_forward,
    roi_align.roi_align_backward,
    roi_align.roi_align_forward,
)
# By their names in `mmcv._ext`.
OPERATORS = {function.__name__: function for function in _FUNCTIONS}
