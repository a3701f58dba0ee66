"""Convolve depthwise 7x7 and normalise in one kernel on a GPU, with its gradients, in Triton.

Maps are (N, H, W, C) with float32, bfloat16 or float16 elements; sums are float32. The input is
read in its own dtype, so that a float32 residual stream needs no copy in the dtype of the products.
Every sum is taken in an order that depends on shapes alone: results repeat bit for bit.

A program of the convolution computes `COLUMNS` neighbouring pixels of a row, so that each element
it loads is used for up to 7 of them.
"""

# Triton types a kernel's constants as `constexpr`, which Python's own values are passed for.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_operators import cast_where_needed, operator

TAPS = 49
COLUMNS = 8
# Pixels whose products one program of the weight's gradient sums: the sums of all programs, which
# are 49 maps of float32, are then a tenth of what is read.
PIXELS_PER_PROGRAM = 1024
# Programs to aim at where the map is small: four for each multiprocessor of the largest GPUs.
PROGRAMS = 512


def depthwise_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the layer norm of the depthwise convolution of x, stride 1, zeros beyond the border.

    Args:
        x: (N, H, W, C), C at most 4096; float32, bfloat16 or float16.
        weight: (C, 1, 7, 7).
        bias, norm_weight, norm_bias: (C,).
        eps: added to the variance.
        dtype: of the result, and of the convolution that is kept for the gradient.

    Returns:
        (N, H, W, C).
    """
    keep = torch.is_grad_enabled()
    return _forward(x.contiguous(), weight, bias, norm_weight, norm_bias, eps, dtype, keep)[0]


@operator("convnext::depthwise_norm")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _outputs(x, dtype, keep)
    if x.numel():
        parameters = (_taps(weight), bias, norm_weight, norm_bias)
        _convolve(x, *parameters, *outputs, eps, norm=True, keep=keep, flipped=False)
    return outputs


@_forward.register_fake
def _(x, weight, bias, norm_weight, norm_bias, eps, dtype, keep):
    return _outputs(x, dtype, keep)


def _outputs(x: Tensor, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, height, width, c = x.shape
    kept = (n, height, width) if keep else (0, 0, 0)
    y = x.new_empty(x.shape, dtype=dtype)
    conv = x.new_empty((*kept, c), dtype=dtype)
    mean, rstd = (x.new_empty(kept, dtype=torch.float32) for _ in range(2))
    return y, conv, mean, rstd


@operator("convnext::depthwise_norm_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    conv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    c = x.shape[-1]
    if not x.numel():
        return torch.zeros_like(x), x.new_zeros(TAPS, c), x.new_zeros(3, c, dtype=torch.float32)
    grad_conv = torch.empty_like(conv)
    sums = _normalise_backward(grad, norm_weight, conv, mean, rstd, grad_conv)
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0)
    if for_x:
        grad_x, unused = torch.empty_like(x), x.new_empty(0)
        parameters = (_taps(weight), unused, unused, unused)
        outputs = (grad_x, unused, unused, unused)
        _convolve(grad_conv, *parameters, *outputs, 0.0, norm=False, keep=False, flipped=True)
    if for_weight:
        grad_weight = _weight_gradient(x, grad_conv)
    return grad_x, grad_weight, sums


@_backward.register_fake
def _(grad, x, weight, norm_weight, conv, mean, rstd, for_x, for_weight):
    c = x.shape[-1]
    grad_x = torch.empty_like(x) if for_x else x.new_empty(0)
    grad_weight = x.new_empty((TAPS, c) if for_weight else 0, dtype=torch.float32)
    return grad_x, grad_weight, x.new_empty(3, c, dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, norm_weight, norm_bias, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, norm_weight, *output[1:])
    ctx.dtypes = (bias.dtype, norm_weight.dtype, norm_bias.dtype)


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, weight, norm_weight, conv, mean, rstd = ctx.saved_tensors
    for_x, for_weight, *for_vectors = ctx.needs_input_grad[:5]
    grad_x, grad_weight, sums = _backward(
        grad.contiguous(), x, weight, norm_weight, conv, mean, rstd, for_x, for_weight
    )
    vectors = cast_where_needed(sums.unbind(), ctx.dtypes, for_vectors)
    if for_weight:
        grad_weight = grad_weight.t().reshape(weight.shape).to(weight.dtype)
    grads = grad_x if for_x else None, grad_weight if for_weight else None
    return *grads, *vectors, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep_for_backward)


def _taps(weight: Tensor) -> Tensor:
    """Return the weight (C, 1, 7, 7) as (49, C), whose rows programs read in one piece."""
    return weight.reshape(len(weight), TAPS).t().contiguous()


def tile(c: int) -> dict[str, int]:
    """Return the sizes of the tiles, and warps of a program, for maps of c channels."""
    block = max(16, triton.next_power_of_2(c))
    # A thread has a sum for each of its channels and columns. The widest maps leave registers for
    # one column only; other sizes of these tiles spill for one GPU or another.
    rows, columns, warps = max(1, 256 // block), COLUMNS, min(16, max(4, block // 64))
    unaligned = c % 16 > 0  # rows of channels begin anywhere: each element needs its own address
    if block >= 2048:
        columns, warps = 1, 16 if block == 4096 and unaligned else 8
    elif block >= 128 and unaligned:
        rows, warps = 1024 // block, 16
    elif block in (256, 512):
        rows, warps = 1, block // 128
    return dict(ROWS=rows, COLUMNS=columns, BLOCK=block, num_warps=warps)


def _convolve(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    y: Tensor,
    conv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    *,
    norm: bool,
    keep: bool,
    flipped: bool,
) -> None:
    n, height, width, c = x.shape
    sizes = tile(c)
    groups = n * height * triton.cdiv(width, sizes["COLUMNS"])
    with torch.cuda.device_of(x):
        convolve_kernel[(triton.cdiv(groups, sizes["ROWS"]),)](
            x, taps, bias, norm_weight, norm_bias, y, conv, mean, rstd, groups, height, width, c,
            eps, NORM=norm, KEEP=keep, FLIPPED=flipped, **sizes,
        )  # fmt: skip


@triton.jit
def convolve_kernel(
    x, taps, bias, norm_weight, norm_bias, y, conv, mean, rstd, groups, height, width, channels,
    eps, NORM: tl.constexpr, KEEP: tl.constexpr, FLIPPED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolve `ROWS` groups of `COLUMNS` pixels, all channels; then add the bias and normalise."""
    group = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    per_row = tl.cdiv(width, COLUMNS)
    row = group // per_row  # n * H + h
    column = (group % per_row) * COLUMNS
    height_of = row % height
    c = tl.arange(0, BLOCK)
    exists = (group < groups)[:, None] & (c < channels)[None, :]
    first = row.to(tl.int64) * width + column  # pixel
    at = first[:, None] * channels + c[None, :]
    sums = ()
    for _ in tl.static_range(COLUMNS):
        sums = sums + (tl.zeros((ROWS, BLOCK), tl.float32),)
    for i in range(7):
        in_map = (height_of + i >= 3) & (height_of + i < height + 3)
        away = ((i - 3) * width - 3) * channels
        if COLUMNS == 1:  # a loop: threads with many channels have no registers for seven taps
            for j in range(7):
                tap = 48 - (i * 7 + j) if FLIPPED else i * 7 + j
                of_tap = tl.load(taps + tap * channels + c, c < channels, 0).to(tl.float32)
                loaded = in_map & (column + j >= 3) & (column + j < width + 3)
                value = tl.load(x + at + away + j * channels, exists & loaded[:, None], 0)
                sums = (sums[0] + value.to(tl.float32) * of_tap[None, :],)
        else:
            of_row = ()
            for j in tl.static_range(7):
                tap = 48 - (i * 7 + j) if FLIPPED else i * 7 + j
                value = tl.load(taps + tap * channels + c, c < channels, 0).to(tl.float32)
                of_row = of_row + (value[None, :],)
            for t in tl.static_range(COLUMNS + 6):
                loaded = in_map & (column + t >= 3) & (column + t < width + 3)
                value = tl.load(x + at + away + t * channels, exists & loaded[:, None], 0)
                updated = ()
                for k in tl.static_range(COLUMNS):
                    if t - k >= 0 and t - k < 7:
                        updated = updated + (sums[k] + value.to(tl.float32) * of_row[t - k],)
                    else:
                        updated = updated + (sums[k],)
                sums = updated
    if NORM:
        add = tl.load(bias + c, c < channels, 0).to(tl.float32)[None, :]
        scale = tl.load(norm_weight + c, c < channels, 0).to(tl.float32)[None, :]
        shift = tl.load(norm_bias + c, c < channels, 0).to(tl.float32)[None, :]
    for k in tl.static_range(COLUMNS):
        in_row = column + k < width
        stored = exists & in_row[:, None]
        value = sums[k]
        if NORM:
            value += add
            if KEEP:
                tl.store(conv + at + k * channels, value.to(conv.dtype.element_ty), stored)
            average = tl.sum(value, 1) / channels
            value = tl.where((c < channels)[None, :], value - average[:, None], 0)
            factor = 1 / tl.sqrt(tl.sum(value * value, 1) / channels + eps)
            if KEEP:
                pixel = (group < groups) & in_row
                tl.store(mean + first + k, average, pixel)
                tl.store(rstd + first + k, factor, pixel)
            value = value * factor[:, None] * scale + shift
        tl.store(y + at + k * channels, value.to(y.dtype.element_ty), stored)


def _normalise_backward(
    grad: Tensor, norm_weight: Tensor, conv: Tensor, mean: Tensor, rstd: Tensor, grad_conv: Tensor
) -> Tensor:
    """Fill grad_conv; return (3, C), the gradients of the bias, the norm's weight and its bias."""
    c = conv.shape[-1]
    pixels = conv.numel() // c
    each = triton.cdiv(pixels, PROGRAMS)
    programs = triton.cdiv(pixels, each)
    partial = conv.new_empty(programs, 3, c, dtype=torch.float32)
    sizes = {name: size for name, size in tile(c).items() if name != "COLUMNS"}
    with torch.cuda.device_of(conv):
        normalise_backward_kernel[(programs,)](
            grad, norm_weight, conv, mean, rstd, grad_conv, partial, pixels, each, c, **sizes
        )
    return partial.sum(0)


@triton.jit
def normalise_backward_kernel(
    grad, norm_weight, conv, mean, rstd, grad_conv, partial, pixels, each, channels,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient before the norm of `each` pixels, and sums for the parameters."""
    c = tl.arange(0, BLOCK)
    in_c = c < channels
    scale = tl.load(norm_weight + c, in_c, 0).to(tl.float32)[None, :]
    first = tl.program_id(0) * each
    for_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    for_scale = tl.zeros((ROWS, BLOCK), tl.float32)
    for_shift = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, each, ROWS):
        row = start + tl.arange(0, ROWS)
        pixel = first + row
        exists = (row < each) & (pixel < pixels)
        at = pixel.to(tl.int64)[:, None] * channels + c[None, :]
        mask = exists[:, None] & in_c[None, :]
        g = tl.load(grad + at, mask, 0).to(tl.float32)
        value = tl.load(conv + at, mask, 0).to(tl.float32)
        average = tl.load(mean + pixel, exists, 0)[:, None]
        factor = tl.load(rstd + pixel, exists, 0)[:, None]
        value = tl.where(mask, (value - average) * factor, 0)
        scaled = g * scale
        mean_grad = tl.sum(scaled, 1)[:, None] / channels
        mean_product = tl.sum(scaled * value, 1)[:, None] / channels
        result = (scaled - mean_grad - value * mean_product) * factor
        tl.store(grad_conv + at, result.to(grad_conv.dtype.element_ty), mask)
        for_bias += tl.where(mask, result, 0)
        for_scale += g * value
        for_shift += g
    out = partial + tl.program_id(0).to(tl.int64) * 3 * channels + c
    tl.store(out, tl.sum(for_bias, 0), in_c)
    tl.store(out + channels, tl.sum(for_scale, 0), in_c)
    tl.store(out + 2 * channels, tl.sum(for_shift, 0), in_c)


# Tiles of the weight's gradient: 49 sums a thread leave registers for one element.
GRADIENT_TILE = dict(ROWS=4, COLUMNS=4, BLOCK=32, num_warps=4)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the weight gradient (49, C) in float32 of x and grad (N, H, W, C)."""
    n, height, width, c = x.shape
    rows, blocks = n * height, triton.cdiv(c, GRADIENT_TILE["BLOCK"])
    each = triton.cdiv(rows * blocks, PROGRAMS)
    each = max(1, min(each, PIXELS_PER_PROGRAM // width))
    programs = triton.cdiv(rows, each)
    partial = x.new_empty(programs, TAPS, c, dtype=torch.float32)
    with torch.cuda.device_of(x):
        weight_gradient_kernel[(blocks, programs)](
            x, grad, partial, rows, each, height, width, c, **GRADIENT_TILE
        )
    return partial.sum(0)


@triton.jit
def weight_gradient_kernel(
    x, grad, partial, rows, each, height, width, channels, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the products of grad and shifted x over `each` rows of maps, for a block of channels."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_c = c < channels
    first = tl.program_id(1) * each
    per_row = tl.cdiv(width, COLUMNS)
    groups = tl.minimum(each, rows - first) * per_row
    sums = ()
    for _ in tl.static_range(7):
        of_row = ()
        for _ in tl.static_range(7):
            of_row = of_row + (tl.zeros((ROWS, BLOCK), tl.float32),)
        sums = sums + (of_row,)
    for start in range(0, groups, ROWS):
        group = start + tl.arange(0, ROWS)
        row = first + group // per_row
        column = (group % per_row) * COLUMNS
        height_of = row % height
        exists = (group < groups)[:, None] & in_c[None, :]
        at = (row.to(tl.int64) * width + column)[:, None] * channels + c[None, :]
        grads, in_row = (), ()
        for k in tl.static_range(COLUMNS):
            mask = exists & (column + k < width)[:, None]
            grads = grads + (tl.load(grad + at + k * channels, mask, 0).to(tl.float32),)
        for t in tl.static_range(COLUMNS + 6):
            inside = (column + t >= 3) & (column + t < width + 3)
            in_row = in_row + (exists & inside[:, None],)
        before, sums = sums, ()
        for i in tl.static_range(7):
            in_map = ((height_of + i >= 3) & (height_of + i < height + 3))[:, None]
            of_row = before[i]
            for t in tl.static_range(COLUMNS + 6):
                away = ((i - 3) * width + t - 3) * channels
                value = tl.load(x + at + away, in_row[t] & in_map, 0).to(tl.float32)
                updated = ()
                for j in tl.static_range(7):
                    if t - j >= 0 and t - j < COLUMNS:
                        updated = updated + (tl.fma(value, grads[t - j], of_row[j]),)
                    else:
                        updated = updated + (of_row[j],)
                of_row = updated
            sums = sums + (of_row,)
    out = partial + tl.program_id(1).to(tl.int64) * 49 * channels + c
    for tap in tl.static_range(49):
        tl.store(out + tap * channels, tl.sum(sums[tap // 7][tap % 7], 0), in_c)
