"""Compare Triton's kernels with float64, in a process with TRITON_INTERPRET=1 (test_kernels.py)."""

import pytest
import torch
from support.oracles import randomise
from support.triton_interpreter import bytes_moved
from torch import Tensor

from backbones.convnext import Block, ConvNeXt
from backbones.ops.depthwise_conv import depthwise_conv2d_reference
from backbones.ops.depthwise_norm_triton import depthwise_norm
from backbones.ops.mlp_triton import mlp
from backbones.ops.norm_mlp import norm_mlp_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Odd sizes, one pixel, rows and columns alone; channels that fill no tile, and more than one.
SHAPES = [(2, 5, 11, 20), (1, 1, 1, 3), (3, 9, 2, 40), (1, 2, 17, 33)]


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is allocated with NaN: an element that no kernel writes does not go unnoticed."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def reference(x, weight, bias, norm_weight, norm_bias):
    y = depthwise_conv2d_reference(x, weight, bias)
    return torch.nn.functional.layer_norm(y, norm_bias.shape, norm_weight, norm_bias, 1e-6)


def in_nan(x: Tensor) -> Tensor:
    """Return x with NaN before and after it in memory, which a load beyond it would bring in."""
    around = torch.full((x.numel() + 20000,), torch.nan, dtype=x.dtype)
    around[10000:-10000] = x.flatten()
    return around[10000:-10000].view(x.shape)


def compare(ours, plain, leaves: list[Tensor], truth=None) -> None:
    """Check a result and all gradients: at most twice plain PyTorch's error in the same dtype.

    The kernels round at other places, so each error has a floor of rounding the result once.
    """
    exact = [each.detach().double().requires_grad_() for each in leaves]
    wanted = (truth or plain)(*exact)
    weights = torch.randn(wanted.shape)
    results = [[wanted, *torch.autograd.grad(wanted, exact, weights.double())]]
    for function in (ours, plain):
        given = [in_nan(each.detach()).requires_grad_() for each in leaves]
        out = function(*given)
        results.append([out, *torch.autograd.grad(out, given, weights.to(out.dtype))])
    for name, (wanted, found, theirs) in enumerate(zip(*results, strict=True)):
        assert found.dtype == theirs.dtype and found.shape == theirs.shape, name
        assert found.isfinite().all(), name
        error, allowed = ((each.double() - wanted).norm() for each in (found, theirs))
        floor = torch.finfo(found.dtype).eps * wanted.norm() / 4
        assert error <= 2 * allowed + floor, (name, error, allowed)
        assert wanted.norm() > 0 or found.norm() <= floor, name


def parameters_of(c: int, dtype: torch.dtype) -> list[Tensor]:
    block = randomise(Block(c, 0.0, 1.0, False, False))
    return [p.to(dtype) for p in (*block.dwconv.parameters(), *block.norm.parameters())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_norm(shape, dtype):
    leaves = [torch.randn(shape).to(dtype), *parameters_of(shape[-1], dtype)]
    compare(lambda *given: depthwise_norm(*given, 1e-6, dtype), reference, leaves)


def mlp_leaves(shape, dtype: torch.dtype, grn: bool, scale: bool, residual: bool) -> list[Tensor]:
    n, height, width, c = shape
    shapes = [shape, (4 * c, c), (4 * c,), (c, 4 * c), (c,)]
    leaves = [torch.randn(s) * (1 if s == shape else 0.3) for s in shapes]
    leaves += [torch.randn(1, 1, 1, 4 * c) for _ in range(2 * grn)]
    leaves += [torch.randn(c)] * scale + [torch.randn(shape)] * residual
    return [each.to(dtype) for each in leaves]


def mlp_calls(grn: bool, scale: bool, residual: bool):
    def named(rest) -> dict[str, Tensor]:
        names = ["grn_gamma", "grn_beta"] * grn + ["scale"] * scale + ["residual"] * residual
        return dict(zip(names, rest, strict=True))

    def ours(x, w1, b1, w2, b2, *rest):
        return mlp(x, w1, b1, w2, b2, **named(rest))

    def plain(x, w1, b1, w2, b2, *rest):
        h = torch.nn.functional.gelu(torch.nn.functional.linear(x, w1, b1))
        given = named(rest)
        if grn:
            from backbones.ops.grn import global_response_norm

            h = global_response_norm(h, given["grn_gamma"], given["grn_beta"])
        h = torch.nn.functional.linear(h, w2, b2)
        h = h * given["scale"] if scale else h
        return given["residual"] + h if residual else h

    return ours, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [(False, True, True), (True, False, True), (True, True, False)])
@pytest.mark.parametrize("shape", [(2, 5, 15, 12), (1, 1, 1, 3), (1, 2, 3, 40)], ids=str)
def test_mlp(shape, options, dtype):
    compare(*mlp_calls(*options), mlp_leaves(shape, dtype, *options))
