"""Check the compiled mmcv operators that a model calls."""

from collections.abc import Iterator

import torch

from backbones.openmmlab import mmcv_ops
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.walk import nodes, type_name

from .plan import RunPlan

# What layers, heads, losses and samplers call, by the names of their classes (those that inherit
# from them too) and by other names that configs have for them.
OPERATORS = {
    "DeformConv2d": ("deform_conv_forward",),
    "DCN": ("deform_conv_forward",),
    "SAC": ("deform_conv_forward",),
    "SAConv2d": ("deform_conv_forward",),
    "TOODHead": ("deform_conv_forward",),
    "ModulatedDeformConv2d": ("modulated_deform_conv_forward",),
    "DCNv2": ("modulated_deform_conv_forward",),
    "MaskedConv2d": ("masked_im2col_forward", "masked_col2im_forward"),
    "CARAFE": ("carafe_forward",),
    "CARAFEPack": ("carafe_forward",),
    "CARAFENaive": ("carafe_naive_forward",),
    "carafe": ("carafe_forward",),
    "PSAMask": ("psamask_forward",),
    "RoIPool": ("roi_pool_forward",),
    "DeformRoIPool": ("deform_roi_pool_forward",),
    "PrRoIPool": ("prroi_pool_forward",),
    "RoIAlignRotated": ("roi_align_rotated_forward",),
    "RiRoIAlignRotated": ("riroi_align_rotated_forward",),
    "BorderAlign": ("border_align_forward",),
    "Correlation": ("correlation_forward",),
    "ScoreHLRSampler": ("nms_match",),
    "nms_match": ("nms_match",),
    "nms_rotated": ("nms_rotated",),
    "nms_quadri": ("nms_quadri",),
    "CLRHead": ("line_nms_forward",),
    "MMSyncBN": ("sync_bn_forward_mean",),
}
# The same for what has a plain PyTorch path on a CPU.
ON_A_GPU = {
    "FocalLoss": ("sigmoid_focal_loss_forward",),
    "SigmoidFocalLoss": ("sigmoid_focal_loss_forward",),
    "SoftmaxFocalLoss": ("softmax_focal_loss_forward",),
    "MultiScaleDeformableAttention": ("ms_deform_attn_forward",),
}


def check_operators(plan: RunPlan) -> Iterator[Issue]:
    """Name the operators that the model calls and that an mmcv without compiled ones lacks."""
    gpu = torch.cuda.is_available()
    called: dict[str, list[tuple[str, str]]] = {}
    for name, place in _classes(plan):
        for operator in (*OPERATORS.get(name, ()), *ON_A_GPU.get(name, ())):
            called.setdefault(operator, []).append((name, place))
    on_a_gpu = {operator for operators in ON_A_GPU.values() for operator in operators}
    for operator, places in called.items():
        if mmcv_ops.is_available(operator):
            continue
        name, place = places[0]
        only = " on a GPU" if operator in on_a_gpu else ""
        yield Issue(
            "error" if gpu or not only else "note", place,
            f"{name} calls mmcv's {operator}{only}, which an mmcv without compiled operators lacks",
            f"take another layer, or compile mmcv: {mmcv_ops.how_to_compile()}", "unsupported",
        )  # fmt: skip


def _classes(plan: RunPlan) -> Iterator[tuple[str, str]]:
    """Yield (class name, config key or module) for every component of a model."""
    for path, node in nodes(plan.config.get("model"), "model"):
        if name := type_name(node):
            yield name, path
    if plan.model is not None:
        for path, module in plan.model.named_modules():
            for base in type(module).__mro__:
                yield base.__name__, f"model.{path}" if path else "model"
