"""Convolve (N, H, W, C) maps depthwise, with a faster weight gradient on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .caches import own_caches_bytes
from .cpu_path import cpu_path_applies

# Pixels that one float32 sum runs over. Longer sums are a little faster and less exact: with this
# many the root mean square error against float64 was at most 1.6 times that of PyTorch's own
# gradient over maps of 8x8 to 200x304 on SSE4.1, AVX2 and AVX-512, with 512 up to 2.4 times.
PIXELS_PER_SUM = 192
# Elements of a map that are worked on at a time: in float32 they fill the cores' own caches. Tuned
# on two cores of an AMD EPYC (Zen 4, 1 MiB of L2 each); results are right with any number.
ELEMENTS_AT_A_TIME = own_caches_bytes() // 4


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own square kernel, stride 1, zeros beyond the border.

    On a CPU PyTorch's own gradient of the weight takes ten times as long as the forward pass. It is
    a correlation of the input with the output's gradient, channel by channel; here it is computed
    as a depthwise convolution whose kernels are tiles of that gradient, summed over the tiles.
    Elsewhere this is `F.conv2d`. Gradients of gradients are not to be had on a CPU.

    Args:
        x: (N, H, W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,), or None.

    Returns:
        (N, H, W, C) in the dtype that `F.conv2d` gives, under autocast too.
    """
    if not cpu_path_applies(x, gradients=True):
        return depthwise_conv2d_reference(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _DepthwiseConv2d.apply(x, weight, bias)


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `depthwise_conv2d` with PyTorch's own operator, as its definition."""
    x = x.permute(0, 3, 1, 2)  # (N, C, H, W), channels last in memory
    x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return x.permute(0, 2, 3, 1)  # (N, H, W, C)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return depthwise_conv2d_reference(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            depthwise_conv2d_reference(grad, weight.flip(2, 3)) if for_x else None,
            _weight_gradient(x, grad, weight.shape[-1]).to(weight.dtype) if for_weight else None,
            grad.sum((0, 1, 2)) if for_bias else None,
        )


def _weight_gradient(x: Tensor, grad: Tensor, k: int) -> Tensor:
    """Return the weight gradient (C, 1, k, k), in float32 or wider, of x and grad (N, H, W, C)."""
    n, height, width, c = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    tiles = -(-height // max(1, PIXELS_PER_SUM // width))
    rows = -(-height // tiles)  # of a tile
    tiles = -(-height // rows)
    at_a_time = max(1, ELEMENTS_AT_A_TIME // (rows * width * c))
    samples, tiles_at_a_time = max(1, at_a_time // tiles), min(tiles, at_a_time)

    total = torch.zeros(c, 1, k, k, dtype=dtype)
    for first in range(0, n, samples):
        some_x, some_grad = x[first : first + samples], grad[first : first + samples]
        for tile in range(0, tiles, tiles_at_a_time):
            number = min(tiles_at_a_time, tiles - tile)
            top, bottom = tile * rows, (tile + number) * rows
            kernels = _rows_or_zeros(some_grad, top, bottom, 0, dtype)
            kernels = kernels.unflatten(1, (number, rows))  # (samples, number, rows, W, C)
            kernels = kernels.permute(0, 1, 4, 2, 3).flatten(0, 2)  # (groups, rows, W)
            inputs = _rows_or_zeros(some_x, top - k // 2, bottom + k // 2, k // 2, dtype)
            inputs = inputs.unfold(1, rows + k - 1, rows)  # (samples, number, W + k - 1, C, rows')
            inputs = inputs.permute(0, 1, 3, 4, 2).flatten(0, 2)  # (groups, rows', W + k - 1)
            sums = F.conv2d(inputs[None], kernels[:, None], groups=len(kernels))
            total += sums.view(-1, c, 1, k, k).sum(0)
    return total


def _rows_or_zeros(x: Tensor, top: int, bottom: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return rows top to bottom of (N, H, W, C), padded with zeros beyond the map on all sides."""
    height = x.shape[1]
    above, below = max(-top, 0), max(bottom - height, 0)
    x = x[:, top + above : bottom - below].to(dtype)
    return F.pad(x, (0, 0, columns, columns, above, below)) if columns or above or below else x
