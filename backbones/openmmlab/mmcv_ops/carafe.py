"""Compute CARAFE: upsampling with kernels that a network predicts for each pixel."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill output (N, C, scale_factor * H, scale_factor * W) with weighted neighbourhoods.

    features: (N, C, H, W), zero outside; masks: (N, group_size * kernel_size^2, scale_factor * H,
    scale_factor * W), for each pixel of output the weights of the kernel_size x kernel_size pixels
    around the one that it lies in, one set for each group of channels. rfeatures, of features'
    shape, takes what `carafe_backward` reads; routput and rmasks are scratch of mmcv's kernels.
    Halves are computed in float32 and rounded once.

    Wang et al., CARAFE, 2019, equation 4; mmcv 2.3.6,
    ops/csrc/common/cuda/carafe_naive_cuda_kernel.cuh.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill bottom_grad and mask_grad with `carafe_forward`'s gradients for top_grad."""
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill output as `carafe_forward` does."""
    dtype = compute_dtype(features, masks)
    n, c, h, w = features.shape
    padded, taps = _taps(features.to(dtype), masks.to(dtype), kernel_size, group_size, scale_factor)
    shape = (n, group_size, c // group_size, h, scale_factor, w, scale_factor)
    total = padded.new_zeros(shape)
    for top, left, weight in taps:
        total += padded[..., top : top + h, left : left + w][..., None, :, None] * weight
    output.copy_(total.view(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill bottom_grad and mask_grad with `carafe_naive_forward`'s gradients for top_grad."""
    dtype = compute_dtype(features, masks)
    n, c, h, w = features.shape
    padded, taps = _taps(features.to(dtype), masks.to(dtype), kernel_size, group_size, scale_factor)
    shape = (n, group_size, c // group_size, h, scale_factor, w, scale_factor)
    gradient = top_grad.to(dtype).reshape(shape)
    of_features, of_masks = torch.zeros_like(padded), []
    for top, left, weight in taps:
        window = (..., slice(top, top + h), slice(left, left + w))
        of_features[window] += (gradient * weight).sum(dim=(4, 6))
        of_masks.append((gradient * padded[window][..., None, :, None]).sum(dim=2))
    margin = kernel_size // 2
    bottom_grad.copy_(
        of_features[..., margin : margin + h, margin : margin + w].reshape(features.shape)
    )
    mask_grad.copy_(torch.stack(of_masks, dim=2).reshape(masks.shape))


def _taps(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> tuple[Tensor, Iterator[tuple[int, int, Tensor]]]:
    """Return the padded features (N, G, C / G, ...) and each tap's corner in them and weights.

    Weights are (N, G, 1, H, scale_factor, W, scale_factor).
    """
    n, c, h, w = features.shape
    margin = kernel_size // 2
    padded = F.pad(features, (margin,) * 4).unflatten(1, (group_size, c // group_size))
    weights = masks.reshape(n, group_size, kernel_size**2, 1, h, scale_factor, w, scale_factor)
    corners = ((row, column) for row in range(kernel_size) for column in range(kernel_size))
    return padded, ((row, column, weights[:, :, tap]) for tap, (row, column) in enumerate(corners))
