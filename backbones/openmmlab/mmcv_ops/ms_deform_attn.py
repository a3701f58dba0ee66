"""Compute multi-scale deformable attention with mmcv's own PyTorch path."""

import torch
from torch import Tensor

from .precision import compute_dtype


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the attended values (N, Q, heads * D), of value's dtype.

    value: (N, S, heads, D), the pixels of L maps one after the other; spatial_shapes: (L, 2), their
    heights and widths; sampling_loc: (N, Q, heads, L, P, 2), x and y of points, 0 and 1 at the
    map's borders; attn_weight: (N, Q, heads, L, P). Halves are computed in float32 and rounded
    once. level_start_index and im2col_step change nothing: the maps follow each other without gaps.

    Zhu et al., Deformable DETR, 2020, equation 3; mmcv 2.3.6, ops/multi_scale_deform_attn.py,
    `multi_scale_deformable_attn_pytorch`, which it uses on a CPU.
    """
    dtype = compute_dtype(value)
    inputs = (tensor.to(dtype) for tensor in (value, sampling_loc, attn_weight))
    return _attend(spatial_shapes, *inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the gradients of value, sampling_loc and attn_weight for grad_output (N, Q, heads * D).

    The other arguments are those of `ms_deform_attn_forward`.
    """
    dtype = compute_dtype(value)
    with torch.enable_grad():
        inputs = [
            tensor.detach().to(dtype).requires_grad_()
            for tensor in (value, sampling_loc, attn_weight)
        ]
        output = _attend(spatial_shapes, *inputs)
    gradients = torch.autograd.grad(output, inputs, grad_output.to(dtype))
    buffers = (grad_value, grad_sampling_loc, grad_attn_weight)
    for buffer, gradient in zip(buffers, gradients, strict=True):
        buffer.copy_(gradient)


def _attend(spatial_shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # mmcv reads them one by one: from a GPU each would be a transfer.
    shapes = spatial_shapes.cpu()
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
