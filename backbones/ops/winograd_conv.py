"""Convolve with 3x3 kernels on the CPU by Winograd's algorithm: 16 multiplications for 36.

A tile of 2 x 2 outputs depends on 4 x 4 inputs. Both are polynomials in two variables, and the
convolution is their product with the kernel, which is found by its values at 4 x 4 points: 0, 1, -1
and infinity each way. With d the inputs of a tile and g the kernel,

    y = A (G g G^T * B d B^T) A^T,

where * multiplies channels at each point. The kernel's gradient takes the same way back. Tiles of
4 x 4 outputs would take 9 multiplications for 36 and two thirds of the time, with five times the
error.

Nearly all of the error against float64 is that of summing over channels. How exact PyTorch's own
convolution is depends on its kernels for the processor: its input gradient splits long sums on
AVX2 and is then twice as exact as one sum over all channels. So sums are split here too.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu_path import cpu_path_applies

# Channels that one float32 sum runs over. With 64 the error is at most 1.6 times that of PyTorch's
# own under AVX2, AVX-512 and neither; one sum over all of 160 has 2.2 times its error under AVX2.
CHANNELS_PER_SUM = 64
# Tiles that one float32 sum of the kernel's gradient runs over: at most 1.5 times the error.
TILES_PER_SUM = 128
# Pixels of output that are worked on at a time: enough for a matrix product, few for a cache. With
# LEAST_CHANNELS and LEAST_PIXELS it was tuned on an AMD EPYC (Zen 4: 1 MiB of L2 a core, 32 MiB of
# L3); results are right with any.
PIXELS_AT_A_TIME = 1024
TILE, SIDE = 2, 4  # outputs and inputs of a tile, each way
# With fewer of either, PyTorch's own is as fast.
LEAST_CHANNELS = 128
LEAST_PIXELS = 8192


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with 3x3 kernels, stride 1, one row and column of zeros around the map.

    In float32 on a CPU this is Winograd's algorithm where it is faster; elsewhere, and under
    autocast, `F.conv2d`. Gradients of gradients are not to be had of the former.

    Args:
        x: (N, C, H, W); best in channels-last layout.
        weight: (O, C, 3, 3).
        bias: (O,), or None.

    Returns:
        (N, O, H, W) in channels-last layout where the algorithm is used.
    """
    if not pays_off(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y = _Conv3x3.apply(x, weight)
    else:
        y = _convolve(x, weight)
    return y if bias is None else y.add_(bias[:, None, None])


def pays_off(x: Tensor, weight: Tensor) -> bool:
    """Return whether `conv3x3` uses the algorithm for these tensors."""
    n, _, height, width = x.shape
    large = min(weight.shape[:2]) >= LEAST_CHANNELS and n * height * width >= LEAST_PIXELS
    has_values = type(x) is Tensor  # a fake tensor has none
    return (
        large
        and has_values
        and cpu_path_applies(x, weight, dtypes=(torch.float32,), autocast=False)
    )


A = torch.tensor([[1, 1, 1, 0], [0, 1, -1, 1.0]])
B = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1.0]])
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1.0]])
# In both directions at once.
TO_OUTPUTS, OF_INPUTS, OF_KERNEL = (torch.kron(m, m) for m in (A, B, G))  # (4, 16) (16, 16) (16, 9)


def _chunks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the samples of (N, H, W, C), and of the rows of tiles in them."""
    n, height, width, _ = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    at_a_time = PIXELS_AT_A_TIME // TILE**2
    samples = max(1, at_a_time // (rows * columns))
    rows_at_a_time = max(1, min(rows, at_a_time // columns))
    for sample in range(0, n, samples):
        for row in range(0, rows, rows_at_a_time):
            yield slice(sample, sample + samples), slice(row, min(row + rows_at_a_time, rows))


def _cut(x: Tensor, samples: slice, rows: slice, border: int) -> Tensor:
    """Return tiles (tiles, side * side, C) of (N, H, W, C) with borders; zero beyond the map."""
    _, height, width, c = x.shape
    side = TILE + 2 * border
    top, bottom = TILE * rows.start - border, TILE * rows.stop + border
    above, below, right = max(-top, 0), max(bottom - height, 0), -width % TILE + border
    part = x[samples, max(top, 0) : min(bottom, height)]
    if border or right or below:
        part = F.pad(part, (0, 0, border, right, above, below))
    tiles = part.unfold(1, side, TILE).unfold(2, side, TILE)  # (N, rows, columns, C, side, side)
    return tiles.permute(0, 1, 2, 4, 5, 3).reshape(-1, side**2, c)


def _apply(transform: Tensor, tiles: Tensor) -> Tensor:
    """Apply a transform (p, q) to tiles (tiles, q, C); return (tiles, p, C)."""
    return torch.bmm(transform.expand(len(tiles), -1, -1), tiles)


def _channel_products(values: Tensor, kernel: Tensor) -> Tensor:
    """Multiply (16, tiles, C) by (16, C, O), summing the products of a few channels at a time."""
    first, *rest = zip(
        values.split(CHANNELS_PER_SUM, dim=2), kernel.split(CHANNELS_PER_SUM, dim=1), strict=True
    )
    total = torch.bmm(*first)
    for some_values, some_kernel in rest:
        total.baddbmm_(some_values, some_kernel)
    return total


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Allocate (N, O, H, W), channels last in memory."""
    x = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    n, height, width, c = x.shape
    o, columns = len(weight), -(-width // TILE)
    kernel = OF_KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, c * o)
    kernel = kernel.view(-1, c, o)  # (16, C, O)
    out = torch.empty(n, o, height, width, memory_format=torch.channels_last)
    out_rows = out.permute(0, 2, 3, 1)  # (N, H, W, O)
    for samples, rows in _chunks(x):
        values = _apply(OF_INPUTS, _cut(x, samples, rows, border=1))
        values = _channel_products(values.transpose(0, 1), kernel)  # (16, tiles, O)
        tiles = _apply(TO_OUTPUTS, values.transpose(0, 1))  # (tiles, 4, O)
        target = out_rows[samples, TILE * rows.start : TILE * rows.stop]
        tiles = tiles.view(len(target), -1, columns, TILE, TILE, o).transpose(2, 3)
        if target.shape[1:3] == (TILE * tiles.shape[1], TILE * columns):
            target.view(tiles.shape).copy_(tiles)
        else:
            tiles = tiles.reshape(len(target), -1, TILE * columns, o)
            target.copy_(tiles[:, : target.shape[1], :width])
    return out


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Compute the weight gradient (O, C, 3, 3) from the input and the output's gradient."""
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # (N, H, W, C), (N, H, W, O)
    c, o = x.shape[-1], grad.shape[-1]
    total = x.new_zeros(SIDE**2, c, o)
    for samples, rows in _chunks(x):
        values = _apply(OF_INPUTS, _cut(x, samples, rows, border=1))
        grads = _apply(TO_OUTPUTS.T, _cut(grad, samples, rows, border=0))  # (tiles, 16, O)
        values = values.permute(1, 2, 0)  # (16, C, tiles)
        grads = grads.transpose(0, 1)  # (16, tiles, O)
        for tiles in zip(
            values.split(TILES_PER_SUM, dim=2), grads.split(TILES_PER_SUM, dim=1), strict=True
        ):
            total.baddbmm_(*tiles)
    taps = OF_KERNEL.T @ total.flatten(1)  # (9, C * O)
    return taps.view(3, 3, c, o).permute(3, 2, 0, 1)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            _convolve(grad, turned) if ctx.needs_input_grad[0] else None,
            _weight_gradient(x, grad) if ctx.needs_input_grad[1] else None,
        )
