"""Compute the pointwise half of a ConvNeXt block on the CPU: norm, linears, GELU, GRN, scale.

The hidden map is four times as wide as the block. Written out whole it leaves the cache, and fresh
memory for it costs as much time as it takes to fill. Here rows of channels go through both linears
a few at a time, forward and backward, and of the hidden map only what the GELU is given is kept.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .caches import shared_cache_bytes
from .grn import EPS, global_response_norm, response, sums_of_squares
from .processor import onednn_linear_applies

# Of the hidden map, what is worked on at a time. On an AMD EPYC (Zen 5, 32 MiB of L3 for two cores)
# a quarter to the whole of the last cache take the same time within 3 %, and 2 MiB take 3 to 10 %
# more; results are right with any size.
HIDDEN_BYTES = max(shared_cache_bytes() // 4, 2**21)


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
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
    """Compute `norm_mlp_reference` on a CPU, a few rows at a time; the interface is the same.

    Under autocast the two linears' operands are cast as `F.linear` would cast them.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight1, bias1 = x.to(dtype), weight1.to(dtype), bias1.to(dtype)
        weight2, bias2 = weight2.to(dtype), bias2.to(dtype)
    x = x.contiguous()
    tensors = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    tensors += (grn_gamma, grn_beta, scale)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y = _NormMLP.apply(*tensors, norm_eps)
        return y if residual is None else residual + y
    inference = _inference_in_a_graph if torch.compiler.is_compiling() else _inference
    return inference(*tensors, norm_eps, residual)


def norm_mlp_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
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
    """Compute residual + scale * linear2(grn(gelu(linear1(layer_norm(x))))), operator by operator.

    Args:
        x, residual: (N, H, W, C).
        norm_weight, norm_bias, scale, bias2: (C,).
        weight1: (4C, C); bias1: (4C,).
        weight2: (C, 4C).
        grn_gamma, grn_beta: broadcastable to (1, 1, 1, 4C), both or neither.
    """
    x = F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, norm_eps)
    x = F.gelu(F.linear(x, weight1, bias1))  # (N, H, W, 4C)
    if grn_gamma is not None:
        x = global_response_norm(x, grn_gamma, cast(Tensor, grn_beta))
    x = F.linear(x, weight2, bias2)
    x = x if scale is None else scale * x
    return x if residual is None else residual + x


def _steps(x: Tensor, hidden: int, whole_samples: bool) -> Iterator[tuple[slice, int]]:
    """Return how many rows of (N * H * W, C) to take at a time, and how many samples they span."""
    n, height, width, _ = x.shape
    rows = max(1, HIDDEN_BYTES // (hidden * x.element_size()))
    pixels = height * width
    if whole_samples:
        rows = max(1, rows // pixels) * pixels
    for first in range(0, n * pixels, rows):
        last = min(first + rows, n * pixels)
        yield slice(first, last), (last - first) // pixels


def _parts(rows: slice, row_bytes: int) -> Iterator[slice]:
    """Return the rows of a large sample, whose channels' norms are needed first, in parts."""
    at_a_time = max(1, HIDDEN_BYTES // row_bytes)
    for first in range(rows.start, rows.stop, at_a_time):
        yield slice(first, min(first + at_a_time, rows.stop))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `F.linear` with oneDNN if it can be called: MKL's is up to a tenth slower."""
    if onednn_linear_applies(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the GELU of `_linear`; oneDNN does so while a tile of the product is in registers."""
    if onednn_linear_applies(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return torch.ops.aten.gelu_(F.linear(x, weight, bias))


def _inference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    norm_eps: float,
    residual: Tensor | None,
) -> Tensor:
    c, shape = x.shape[-1], x.shape
    residual = None if residual is None else residual.reshape(-1, c)
    out = torch.empty(x.numel() // c, c, dtype=_inference_dtype(x, scale, residual))
    rows_of = x.reshape(-1, c)
    for rows, samples in _steps(x, len(weight1), gamma is not None):
        parts = list(_parts(rows, len(weight1) * x.element_size()))
        norm = partial(F.layer_norm, normalized_shape=(c,), weight=norm_weight, bias=norm_bias)
        maps = [_linear_gelu(norm(rows_of[i], eps=norm_eps), weight1, bias1) for i in parts]
        second = weight2, bias2
        if gamma is not None:
            second = _respond(maps, samples, gamma.view(-1), cast(Tensor, beta).view(-1), *second)
        for part, h in zip(parts, maps, strict=True):
            h = _linear(h, *second)
            if residual is None:
                out[part] = h if scale is None else h * scale
            elif scale is None:
                torch.add(residual[part], h, out=out[part])
            else:
                torch.addcmul(residual[part], h, scale, out=out[part])
    return out.view(shape)


def _respond(
    maps: list[Tensor], samples: int, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply GRN to hidden maps in place, or to the second linear; return its weight and bias.

    Args:
        maps: (rows, 4C) of `samples` samples in one map, or of one sample in several.
    """
    by_sample = [h.view(samples, -1, h.shape[-1]) for h in maps]
    squares = [sums_of_squares(pixels) for pixels in by_sample]
    factors = response(sum(squares[1:], squares[0]).sqrt(), gamma)  # (samples, 4C)
    if samples == 1 and sum(map(len, maps)) > len(weight):  # smaller than the map
        bias = (bias + weight.to(beta.dtype) @ beta).to(bias.dtype)
        return (weight * factors).to(weight.dtype), bias
    for pixels in by_sample:
        pixels.copy_(torch.addcmul(beta, pixels, factors[:, None]))
    return weight, bias


def _inference_dtype(x: Tensor, scale: Tensor | None, residual: Tensor | None) -> torch.dtype:
    dtype = x.dtype if scale is None else torch.promote_types(x.dtype, scale.dtype)
    return dtype if residual is None else torch.promote_types(dtype, residual.dtype)


# torch.compile takes it as it is: of the plain definition it would write the hidden map out whole.
_inference_in_a_graph = torch.library.custom_op(
    "convnext::norm_mlp", _inference, mutates_args=(), device_types="cpu"
)


@_inference_in_a_graph.register_fake
def _(x: Tensor, *arguments: Any) -> Tensor:
    scale, residual = arguments[8], arguments[10]
    return x.new_empty(x.shape, dtype=_inference_dtype(x, scale, residual))


class _NormMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        scale: Tensor | None,
        norm_eps: float,
    ) -> Tensor:
        c, hidden = x.shape[-1], len(weight1)
        rows_of = x.view(-1, c)
        dtype = x.dtype if scale is None else torch.promote_types(x.dtype, scale.dtype)
        out = torch.empty(len(rows_of), c, dtype=dtype)
        before_gelu = torch.empty(len(rows_of), hidden, dtype=x.dtype)
        means, rstds, norms = [], [], []
        for rows, samples in _steps(x, hidden, gamma is not None):
            h, mean, rstd = torch.native_layer_norm(
                rows_of[rows], (c,), norm_weight, norm_bias, norm_eps
            )
            means.append(mean)
            rstds.append(rstd)
            torch.addmm(bias1, h, weight1.t(), out=before_gelu[rows])
            h = F.gelu(before_gelu[rows])
            if gamma is not None:
                pixels = h.view(samples, -1, hidden)
                norm = sums_of_squares(pixels).sqrt()
                norms.append(norm)
                factor = response(norm, gamma.view(-1))[:, None]
                h = torch.addcmul(cast(Tensor, beta).view(-1), pixels, factor)
                h = h.to(x.dtype).view(-1, hidden)
            h = _linear(h, weight2, bias2)
            if scale is None:
                out[rows] = h
            else:
                torch.mul(h, scale, out=out[rows])
        ctx.norm_eps = norm_eps
        ctx.save_for_backward(
            x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, gamma, beta, scale,
            before_gelu, torch.cat(means), torch.cat(rstds), torch.cat(norms) if norms else None,
        )  # fmt: skip
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, before_gelu, mean, rstd, norm = ctx.saved_tensors
        x, norm_weight, norm_bias, weight1, _, weight2, bias2, gamma, beta, scale = inputs
        c, hidden = x.shape[-1], len(weight1)
        rows_of, grad = x.view(-1, c), grad.reshape(-1, c)
        wide = torch.promote_types(x.dtype, torch.float32)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=wide)

        grad_sum, outer = zeros(c), zeros(c, hidden)
        grad_weight1, grad_bias1 = zeros(hidden, c), zeros(hidden)
        grad_gamma = None if gamma is None else zeros(hidden)
        grad_normed = torch.empty_like(rows_of)
        first = 0
        for rows, samples in _steps(x, hidden, gamma is not None):
            g = grad[rows]
            grad_sum += g.sum(0)
            h = F.gelu(before_gelu[rows])
            grad_h = torch.mm((g if scale is None else g * scale).to(x.dtype), weight2)
            if gamma is None:
                _add_product(outer, g.to(x.dtype).t(), h)
            else:
                some = norm[first : first + samples]
                first += samples
                pixels, grad_pixels = (t.view(samples, -1, hidden) for t in (h, grad_h))
                factor = response(some, gamma.view(-1))
                h = torch.addcmul(beta.view(-1), pixels, factor[:, None]).to(x.dtype)
                _add_product(outer, g.to(x.dtype).t(), h.view(-1, hidden))
                # Of the norms (samples, 4C): through their share in the mean, and their own.
                average = some.mean(dim=-1, keepdim=True) + EPS
                grad_response = (grad_pixels * pixels).sum(1, dtype=wide)
                grad_gamma += (grad_response * some / average).sum(0)
                grad_ratio = grad_response * gamma.view(-1)
                grad_norm = grad_ratio / average
                grad_norm -= (grad_ratio * some).mean(-1, keepdim=True) / average**2
                per_norm = torch.where(some > 0, grad_norm / some, 0)
                grad_h = grad_pixels * factor[:, None] + pixels * per_norm[:, None]
                grad_h = grad_h.to(x.dtype).view(-1, hidden)
            grad_h = torch.ops.aten.gelu_backward(grad_h, before_gelu[rows])
            grad_bias1 += grad_h.sum(0)
            normed = F.layer_norm(rows_of[rows], (c,), norm_weight, norm_bias, ctx.norm_eps)
            _add_product(grad_weight1, grad_h.t(), normed)
            torch.mm(grad_h, weight1, out=grad_normed[rows])
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed, rows_of, (c,), mean, rstd, norm_weight, norm_bias, [True] * 3
        )
        grad_bias2 = grad_sum if scale is None else grad_sum * scale
        grads = (
            grad_x.view(x.shape),
            grad_norm_weight,
            grad_norm_bias,
            grad_weight1,
            grad_bias1,
            outer if scale is None else outer * scale[:, None],
            grad_bias2,
            grad_gamma,
            None if gamma is None else grad_bias2.to(weight2.dtype) @ weight2,
            None if scale is None else (weight2 * outer).sum(1) + bias2 * grad_sum,
        )
        return *(
            None if g is None or not needed else g.view(t.shape).to(t.dtype)
            for g, needed, t in zip(grads, ctx.needs_input_grad, inputs, strict=False)
        ), None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to total in place, summed in total's dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b)
