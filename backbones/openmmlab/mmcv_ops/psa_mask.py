"""Compute PSANet's attention: predicted masks around each pixel, as maps over all pixels."""

import torch
from torch import Tensor

COLLECT = 0  # the other type is 1, distribute


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill output (N, H * W, H, W) with the weights between each two pixels.

    input: (N, h_mask * w_mask, H, W), for each pixel the weights of those around it, itself at
    (half_h_mask, half_w_mask). To collect, output[n, other, h, w] is the weight of the other pixel
    in (h, w)'s mask, to distribute output[n, (h, w), other]; 0 beyond the mask.

    Zhao et al., PSANet, 2018, section 3.2; mmcv 2.3.6, ops/csrc/pytorch/cpu/psamask.cpp.
    """
    masks = input.reshape(num_, h_mask, w_mask, h_feature, w_feature)
    h, w = _positions(h_feature, w_feature, input.device)
    # Of the pixel (y, x) in the mask of (h, w): its row and its column there.
    row = h.view(-1, 1, 1, 1) - h.view(1, 1, -1, 1) + half_h_mask
    column = w.view(1, -1, 1, 1) - w.view(1, 1, 1, -1) + half_w_mask
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    weights = masks[
        :, row.clamp(0, h_mask - 1), column.clamp(0, w_mask - 1), h.view(1, 1, -1, 1), w
    ]
    weights = weights.masked_fill(~inside, 0)  # (N, y, x, h, w)
    if psa_type != COLLECT:
        weights = weights.permute(0, 3, 4, 1, 2)
    output.copy_(weights.reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill grad_input (N, h_mask * w_mask, H, W) with `psamask_forward`'s gradient."""
    weights = grad_output.reshape(num_, h_feature, w_feature, h_feature, w_feature)
    if psa_type != COLLECT:
        weights = weights.permute(0, 3, 4, 1, 2)  # (N, y, x, h, w)
    h, w = _positions(h_feature, w_feature, grad_output.device)
    rows, columns = _positions(h_mask, w_mask, grad_output.device)
    y = rows.view(-1, 1, 1, 1) - half_h_mask + h.view(1, 1, -1, 1)
    x = columns.view(1, -1, 1, 1) - half_w_mask + w
    inside = (y >= 0) & (y < h_feature) & (x >= 0) & (x < w_feature)
    gradient = weights[
        :, y.clamp(0, h_feature - 1), x.clamp(0, w_feature - 1), h.view(1, 1, -1, 1), w
    ]
    grad_input.copy_(gradient.masked_fill(~inside, 0).reshape(grad_input.shape))


def _positions(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(height, device=device), torch.arange(width, device=device)
