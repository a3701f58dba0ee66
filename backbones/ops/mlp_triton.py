"""Compute the two linears of a ConvNeXt block on a GPU, with what is between them, in Triton.

The first product's map, four times as wide as the block, is written once, before the GELU. GRN's
sums of squares are taken where it is written; the GELU and GRN's factors are applied where the
second product reads it, and layer scale and the residual where that one writes. Sums are float32
and their order depends on shapes alone. Products without anything to fuse are PyTorch's.
"""

# Triton types a kernel's constants as `constexpr`, which Python's own values are passed for.
# Outside a kernel `tl.program_id` raises, so a kernel's function seems to return nothing.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grn import EPS, response
from .triton_operators import cast_where_needed, operator


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    grn_gamma: Tensor | None = None,
    grn_beta: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute residual + scale * linear2(grn(gelu(linear1(x)))).

    Args:
        x: (N, H, W, C), in the dtype of the products.
        weight1: (4C, C); bias1: (4C,); of the dtype of x, as the next two.
        weight2: (C, 4C); bias2: (C,).
        grn_gamma, grn_beta: 4C elements, both or neither.
        scale: (C,).
        residual: (N, H, W, C).
    """
    vectors = (each if each is None else each.reshape(-1) for each in (grn_gamma, grn_beta))
    residual = None if residual is None else residual.contiguous()
    parameters = (weight1, bias1, weight2, bias2, *vectors, scale)
    return _forward(x.contiguous(), *parameters, residual)[0]


@operator("convnext::mlp")
def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    out, hidden, norm = _outputs(x, weight1, gamma, scale, residual)
    if not x.numel():
        return out, hidden, norm
    n, pixels, c, wide = _sizes(x, weight1)
    sizes = product_tile(x.dtype, pixels, c)
    if gamma is None:
        torch.addmm(bias1, x.view(-1, c), weight1.t(), out=hidden.view(-1, wide))
        n, pixels, factor = 1, n * pixels, None
    else:
        tiles = triton.cdiv(pixels, sizes["BM"])
        squares = x.new_empty(n, tiles, wide, dtype=torch.float32)
        with torch.cuda.device_of(x):
            hidden_kernel[(n * tiles, triton.cdiv(wide, sizes["BN"]))](
                x, weight1, bias1, hidden, squares, pixels, tiles, c, wide,
                PRECISION=_precision(), **sizes,
            )  # fmt: skip
        torch.sqrt(squares.sum(1), out=norm)
        factor = response(norm, gamma.float())
    tiles = triton.cdiv(pixels, sizes["BM"])
    with torch.cuda.device_of(x):
        output_kernel[(n * tiles, triton.cdiv(c, sizes["BN"]))](
            hidden, weight2, bias2, factor, beta, scale, residual, out, pixels, tiles, wide, c,
            GRN=gamma is not None, SCALE=scale is not None, RESIDUAL=residual is not None,
            PRECISION=_precision(), **sizes,
        )  # fmt: skip
    return out, hidden, norm


@_forward.register_fake
def _(x, weight1, bias1, weight2, bias2, gamma, beta, scale, residual):
    return _outputs(x, weight1, gamma, scale, residual)


def _outputs(
    x: Tensor, weight1: Tensor, gamma: Tensor | None, scale: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = x.dtype
    for other in (scale, residual):
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    wide = len(weight1)
    norm = (0,) if gamma is None else (len(x), wide)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(*x.shape[:-1], wide),
        x.new_empty(norm, dtype=torch.float32),
    )


def _sizes(x: Tensor, weight1: Tensor) -> tuple[int, int, int, int]:
    n, height, width, c = x.shape
    return n, height * width, c, len(weight1)


def product_tile(
    dtype: torch.dtype, pixels: int, c: int, *, backward: bool = False
) -> dict[str, int]:
    """Return the sizes of the tiles, warps and stages of a product over maps of (pixels, c)."""
    # Where rows do not begin at multiples of 16 elements, a thread has a register pair for each
    # element's address: these products have fewer elements to a thread.
    whole = c % 16 == 0
    if dtype == torch.float32:
        depth, warps = (16, 4) if whole or not backward else (32, 8)
        rows = 64 if pixels > 32 else 32
        return dict(BM=rows, BN=64, BK=depth, num_warps=warps, num_stages=2)
    # A program of the backward pass goes through the GELU with all sums of its tile in registers.
    rows = 128 if whole and not backward and pixels > 64 else 64
    columns = 128 if whole or not backward else 64
    return dict(BM=rows, BN=columns, BK=32, num_warps=8, num_stages=3)


def _precision() -> str:
    """Return how float32 operands are multiplied: as PyTorch is set to."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@operator("convnext::mlp_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    hidden: Tensor,
    norm: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, pixels, c, wide = _sizes(x, weight1)
    if not x.numel():
        return torch.zeros_like(x), *(
            x.new_zeros(shape, dtype=torch.float32) for shape in _gradient_shapes(c, wide)
        )
    sizes = product_tile(x.dtype, pixels, c, backward=True)
    if gamma is None:
        n, pixels = 1, n * pixels
    tiles = triton.cdiv(pixels, sizes["BM"])
    grad_hidden, activated = torch.empty_like(hidden), torch.empty_like(hidden)
    sums = x.new_empty(n, tiles, wide, dtype=torch.float32)
    grid = (n * tiles, triton.cdiv(wide, sizes["BN"]))
    with torch.cuda.device_of(x):
        hidden_gradient_kernel[grid](
            grad, weight2, scale, hidden, grad_hidden, activated, sums, pixels, tiles, c, wide,
            GRN=gamma is not None, SCALE=scale is not None, PRECISION=_precision(), **sizes,
        )  # fmt: skip
    rows_of = grad.view(-1, c)
    grad_sum = rows_of.sum(0, dtype=torch.float32)
    grad_bias2 = grad_sum if scale is None else grad_sum * scale
    grad_gamma = grad_beta = norm.new_zeros(wide)
    if gamma is not None and beta is not None:
        mean = norm.mean(-1, keepdim=True) + EPS
        share, products = norm / mean, sums.sum(1)  # (N, 4C)
        grad_gamma = (products * share).sum(0)
        grad_beta = grad_bias2 @ weight2.float()
        grad_share = products * gamma
        grad_norm = (grad_share - (grad_share * share).mean(-1, keepdim=True)) / mean
        towards = torch.where(norm > 0, grad_norm / norm, 0)
        factor = response(norm, gamma.float())
        with torch.cuda.device_of(x):
            response_gradient_kernel[grid](
                grad_hidden, hidden, factor, beta, towards, activated, sums, pixels, tiles, wide,
                **ELEMENTWISE, BM=sizes["BM"], BN=sizes["BN"],
            )  # fmt: skip
    rows_of_hidden = grad_hidden.view(-1, wide)
    grad_x = (rows_of_hidden @ weight1).view_as(x)
    grad_weight1 = _wide_product(rows_of_hidden.t(), x.view(-1, c))
    # Of layer scale, too, without the branch's output: sum(g * (h @ w2 + b2)) by channels.
    outer = _wide_product(rows_of.to(x.dtype).t(), activated.view(-1, wide))  # (C, 4C)
    grad_scale = (weight2 * outer).sum(1) + bias2 * grad_sum
    grad_weight2 = outer if scale is None else outer * scale[:, None]
    weights = (grad_weight1, sums.sum((0, 1)), grad_weight2, grad_bias2)
    return grad_x, *weights, grad_gamma, grad_beta.clone(), grad_scale


def _gradient_shapes(c: int, wide: int) -> tuple[tuple[int, ...], ...]:
    return (wide, c), (wide,), (c, wide), (c,), (wide,), (wide,), (c,)


@_backward.register_fake
def _(grad, x, weight1, weight2, bias2, gamma, beta, scale, hidden, norm):
    shapes = _gradient_shapes(x.shape[-1], len(weight1))
    return torch.empty_like(x), *(x.new_empty(s, dtype=torch.float32) for s in shapes)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32 without rounding the sums to the dtype of the operands."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight1, bias1, weight2, bias2, gamma, beta, scale, residual = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight1, weight2, bias2, gamma, beta, scale, *output[1:])
    ctx.dtypes = [None if each is None else each.dtype for each in inputs]


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    grads = (*_backward(grad.contiguous(), *ctx.saved_tensors), grad)
    return cast_where_needed(grads, ctx.dtypes, ctx.needs_input_grad)


_forward.register_autograd(_gradients, setup_context=_keep_for_backward)

ELEMENTWISE = dict(num_warps=8)


@triton.jit
def gelu(x):
    """Compute x * Phi(x) of float32."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_gradient(x):
    """Compute the derivative of x * Phi(x) of float32."""
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def place_of_tile(pixels, tiles, outer, BM: tl.constexpr, BN: tl.constexpr):
    """Return a program's tile and sample, its pixels and columns, and which of them exist."""
    tile = tl.program_id(0)
    sample = tile // tiles
    row = (tile % tiles) * BM + tl.arange(0, BM)
    pixel = sample.to(tl.int64) * pixels + row
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    return tile, sample, pixel, (row < pixels)[:, None], column, (column < outer)[None, :]


@triton.jit
def hidden_kernel(
    x, weight, bias, hidden, squares, pixels, tiles, inner, outer, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute a tile of x @ weight^T + bias and the sums of its squares after the GELU."""
    tile, sample, pixel, exists, column, in_column = place_of_tile(pixels, tiles, outer, BM, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        in_k = k < inner
        a = tl.load(x + pixel[:, None] * inner + k[None, :], exists & in_k[None, :], 0)
        b = tl.load(weight + column[None, :] * inner + k[:, None], in_column & in_k[:, None], 0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + column, column < outer, 0).to(tl.float32)[None, :]
    result = total.to(hidden.dtype.element_ty)
    mask = exists & in_column
    tl.store(hidden + pixel[:, None] * outer + column[None, :], result, mask)
    activated = tl.where(mask, gelu(result.to(tl.float32)), 0)
    sums = tl.sum(activated * activated, 0)
    tl.store(squares + tile.to(tl.int64) * outer + column, sums, column < outer)


@triton.jit
def output_kernel(
    hidden, weight, bias, factor, shift, scale, residual, out, pixels, tiles, inner, outer,
    GRN: tl.constexpr, SCALE: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute a tile of residual + scale * (grn(gelu(hidden)) @ weight^T + bias)."""
    tile, sample, pixel, exists, column, in_column = place_of_tile(pixels, tiles, outer, BM, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        in_k = k < inner
        a = tl.load(hidden + pixel[:, None] * inner + k[None, :], exists & in_k[None, :], 0)
        a = gelu(a.to(tl.float32))
        if GRN:
            a = a * tl.load(factor + sample * inner + k, in_k, 0)[None, :]
            a = a + tl.load(shift + k, in_k, 0).to(tl.float32)[None, :]
        b = tl.load(weight + column[None, :] * inner + k[:, None], in_column & in_k[:, None], 0)
        total = tl.dot(a.to(b.dtype), b, total, input_precision=PRECISION)
    total += tl.load(bias + column, column < outer, 0).to(tl.float32)[None, :]
    if SCALE:
        total *= tl.load(scale + column, column < outer, 0).to(tl.float32)[None, :]
    at = pixel[:, None] * outer + column[None, :]
    mask = exists & in_column
    if RESIDUAL:
        total += tl.load(residual + at, mask, 0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask)


@triton.jit
def hidden_gradient_kernel(
    grad, weight, scale, hidden, grad_hidden, activated, sums, pixels, tiles, inner, outer,
    GRN: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute a tile of (grad * scale) @ weight, then go back through the GELU.

    Without GRN its columns are summed for the bias's gradient, and the GELU's output is written for
    the weight's. With GRN the tile is written as it is, and its products with that output summed.
    """
    tile, sample, pixel, exists, column, in_column = place_of_tile(pixels, tiles, outer, BM, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        in_k = k < inner
        a = tl.load(grad + pixel[:, None] * inner + k[None, :], exists & in_k[None, :], 0)
        a = a.to(tl.float32)
        if SCALE:
            a *= tl.load(scale + k, in_k, 0).to(tl.float32)[None, :]
        b = tl.load(weight + k[:, None] * outer + column[None, :], in_column & in_k[:, None], 0)
        total = tl.dot(a.to(b.dtype), b, total, input_precision=PRECISION)
    at = pixel[:, None] * outer + column[None, :]
    mask = exists & in_column
    before = tl.load(hidden + at, mask, 0).to(tl.float32)
    if GRN:
        product = total * gelu(before)
    else:
        tl.store(activated + at, gelu(before).to(activated.dtype.element_ty), mask)
        total = total * gelu_gradient(before)
        product = total
    tl.store(grad_hidden + at, total.to(grad_hidden.dtype.element_ty), mask)
    product = tl.sum(tl.where(mask, product, 0), 0)
    tl.store(sums + tile.to(tl.int64) * outer + column, product, column < outer)


@triton.jit
def response_gradient_kernel(
    grad_hidden, hidden, factor, shift, towards, activated, sums, pixels, tiles, outer,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Take a tile of the gradient back through GRN and the GELU in place, and sum its columns."""
    tile, sample, pixel, exists, column, in_column = place_of_tile(pixels, tiles, outer, BM, BN)
    mask = exists & in_column
    at = pixel[:, None] * outer + column[None, :]
    scale = tl.load(factor + sample * outer + column, column < outer, 0)[None, :]
    toward = tl.load(towards + sample * outer + column, column < outer, 0)[None, :]
    add = tl.load(shift + column, column < outer, 0).to(tl.float32)[None, :]
    before = tl.load(hidden + at, mask, 0).to(tl.float32)
    after = gelu(before)
    tl.store(activated + at, (after * scale + add).to(activated.dtype.element_ty), mask)
    total = tl.load(grad_hidden + at, mask, 0).to(tl.float32) * scale + after * toward
    total *= gelu_gradient(before)
    tl.store(grad_hidden + at, total.to(grad_hidden.dtype.element_ty), mask)
    total = tl.sum(tl.where(mask, total, 0), 0)
    tl.store(sums + tile.to(tl.int64) * outer + column, total, column < outer)
