"""Compare Triton's kernels with float64, in a process with TRITON_INTERPRET=1 (test_kernels.py)."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support.oracles import randomise
from support.triton_interpreter import bytes_moved
from torch import Tensor

from backbones.convnext import Block, ConvNeXt
from backbones.ops import depthwise_norm_triton
from backbones.ops.depthwise_conv import depthwise_conv2d_reference
from backbones.ops.depthwise_norm_triton import depthwise_norm
from backbones.ops.grn import global_response_norm
from backbones.ops.mlp_triton import mlp

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Odd sizes, and one pixel alone; then maps of one column, with all rows of taps, whose channels are
# two tiles of the weight's gradient.
SHAPES = [(2, 3, 11, 20), (1, 1, 1, 3), (1, 4, 1, 40)]
QUICK = [(SHAPES[0], torch.float32), (SHAPES[0], torch.bfloat16), (SHAPES[1], torch.float16)]


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is allocated with NaN: an element that no kernel writes does not go unnoticed."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Let each program of a weight's gradient sum several rows, as it does for large maps."""
    monkeypatch.setattr(depthwise_norm_triton, "PROGRAMS", 2)


@pytest.fixture
def narrow_tiles(monkeypatch):
    """Take two pixels a program: the interpreter runs each of a tile's lines for each of them."""
    monkeypatch.setattr(depthwise_norm_triton, "COLUMNS", 2)
    tile = depthwise_norm_triton.GRADIENT_TILE | dict(COLUMNS=2)
    monkeypatch.setattr(depthwise_norm_triton, "GRADIENT_TILE", tile)


def reference(x, weight, bias, norm_weight, norm_bias):
    y = depthwise_conv2d_reference(x, weight, bias)
    return F.layer_norm(y, norm_bias.shape, norm_weight, norm_bias, 1e-6)


def in_nan(x: Tensor) -> Tensor:
    """Return x with NaN before and after it in memory, which a load beyond it would bring in."""
    around = torch.full((x.numel() + 20000,), torch.nan, dtype=x.dtype)
    around[10000:-10000] = x.flatten()
    return around[10000:-10000].view(x.shape)


def compare(ours, plain, leaves: list[Tensor], truth=None) -> None:
    """Check a result and all gradients: at most twice plain PyTorch's error in the same dtype.

    The kernels round at other places, so each error has a floor: rounding the result once.
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
        floor = torch.finfo(found.dtype).eps * wanted.norm() / 2
        assert error <= 2 * allowed + floor, (name, error, allowed)
        assert wanted.norm() > 0 or found.norm() <= floor, name


def parameters_of(c: int, dtype: torch.dtype) -> list[Tensor]:
    block = randomise(Block(c, 0.0, 1.0, False, False))
    return [p.to(dtype) for p in (*block.dwconv.parameters(), *block.norm.parameters())]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in product(SHAPES, DTYPES)
    ],
    ids=str,
)
def test_depthwise_with_norm(shape, dtype):
    leaves = [torch.randn(shape).to(dtype), *parameters_of(shape[-1], dtype)]
    compare(lambda *given: depthwise_norm(*given, 1e-6, dtype), reference, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_maps(dtype):
    """Compare where a program has one column; the weight's gradient takes channels 32 by 32."""
    x = torch.randn(1, 2, 2, 1100).to(dtype)
    weight, *vectors = parameters_of(1100, dtype)

    def ours(x, *vectors):
        return depthwise_norm(x, weight.detach(), *vectors, 1e-6, dtype)

    def plain(x, *vectors):
        return reference(x, weight.detach().to(x.dtype), *vectors)

    compare(ours, plain, [x, *vectors])


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
        h = F.gelu(F.linear(x, w1, b1))
        given = named(rest)
        if grn:
            h = global_response_norm(h, given["grn_gamma"], given["grn_beta"])
        h = F.linear(h, w2, b2)
        h = h * given["scale"] if scale else h
        return given["residual"] + h if residual else h

    return ours, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [(False, True, True), (True, False, True), (True, True, False)])
@pytest.mark.parametrize("shape", [(2, 5, 15, 12), (1, 1, 1, 3), (1, 2, 3, 40)], ids=str)
def test_mlp(shape, options, dtype):
    compare(*mlp_calls(*options), mlp_leaves(shape, dtype, *options))


def block(use_grn: bool, kernels: str | None, rate: float = 0.0, with_cp: bool = False) -> Block:
    torch.manual_seed(1)
    return randomise(Block(8, rate, 0.0 if use_grn else 1.0, use_grn, with_cp, kernels=kernels))


def step(block: Block, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the output, and the gradients of x and of all parameters, under autocast to dtype."""
    x = x.clone().requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        out = block(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out, *torch.autograd.grad(out, [x, *block.parameters()], weights.to(out.dtype))]


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize(
    ("use_grn", "rate", "with_cp"),
    [
        (False, 0.0, False),
        (True, 0.5, True),
        pytest.param(True, 0.0, False, marks=pytest.mark.slow),
        pytest.param(False, 0.5, True, marks=pytest.mark.slow),
        pytest.param(False, 0.0, True, marks=pytest.mark.slow),
    ],
)
def test_block(use_grn, rate, with_cp):
    x = torch.randn(3, 2, 5, 8)
    exact = step(block(use_grn, None, rate).double(), x.double())
    for dtype in (None, torch.bfloat16):
        ours = step(block(use_grn, "triton", rate, with_cp), x, dtype)
        plain = step(block(use_grn, None, rate), x, dtype)
        for found, theirs, wanted in zip(ours, plain, exact, strict=True):
            assert found.dtype == theirs.dtype
            error, allowed = ((each.double() - wanted).norm() for each in (found, theirs))
            eps = torch.finfo(dtype or torch.float32).eps
            assert wanted.norm() > 0 and error <= 2 * allowed + eps * wanted.norm() / 2


@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
def test_empty_batch(use_grn):
    """Check that gradients of a batch that stochastic depth dropped are zero, not missing."""
    out, *grads = step(block(use_grn, "triton"), torch.randn(0, 3, 5, 8))
    assert out.shape == (0, 3, 5, 8)
    assert all(g is not None and not g.any() and g.isfinite().all() for g in grads)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.slow
def test_results_repeat():
    first, second = (step(block(True, "triton"), torch.ones(2, 3, 5, 8)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("trained", ["x", "weights"])
def test_gradients_only_where_they_are_asked_for(trained):
    one = block(True, "triton")
    x = torch.randn(1, 3, 5, 8)
    _, for_x, *for_weights = step(one, x)
    for parameter in one.parameters():
        parameter.requires_grad_(trained == "weights")
    x.requires_grad_(trained == "x")
    out = one(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    found = [x.grad] if trained == "x" else [p.grad for p in one.parameters()]
    wanted = [for_x] if trained == "x" else for_weights
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert trained == "x" or x.grad is None


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("use_grn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_graph_holds_the_kernels(use_grn):
    torch._dynamo.reset()
    x = torch.randn(1, 2, 5, 8)
    wanted = step(block(use_grn, "triton"), x)
    compiled = torch.compile(block(use_grn, "triton"), fullgraph=True, backend="aot_eager")
    for found, expected in zip(step(compiled, x), wanted, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("kind", [pytest.param("depthwise_norm", marks=pytest.mark.slow), "mlp"])
def test_operators_are_what_pytorch_asks_for(kind):
    """Check schemas, shapes without data, and gradients through graphs, by PyTorch's own checks."""
    x, *parameters = [torch.randn(2, 2, 3, 5), *parameters_of(5, torch.float32)]
    arguments = (x, *parameters, 1e-6, torch.float32, True)
    if kind == "mlp":
        leaves = mlp_leaves((2, 2, 3, 5), torch.float32, True, True, True)
        leaves[5:7] = [each.flatten() for each in leaves[5:7]]
        arguments = tuple(leaves)
    for each in arguments:
        if isinstance(each, Tensor):
            each.requires_grad_()
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that are not returned
    operator = getattr(torch.ops.convnext, kind).default
    torch.library.opcheck(operator, arguments)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.slow
@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
def test_replicas_train(use_grn, tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        replica = torch.nn.parallel.DistributedDataParallel(block(use_grn, "triton", rate=0.9))
        for _ in range(3):
            replica(torch.randn(2, 3, 5, 8)).sum().backward()
        assert all(p.grad is not None for p in replica.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("narrow_tiles")
def test_network():
    arch = dict(depths=(1, 1), dims=(8, 12))
    nets = [randomise(ConvNeXt(arch, out_indices=(0, 1), kernels=k)) for k in ("triton", None)]
    nets[0].load_state_dict(nets[1].state_dict())
    x = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        for found, wanted in zip(*(net.eval()(x) for net in nets), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_changed_layer_is_not_passed_over():
    one, seen = block(False, "triton"), []
    one.pwconv1.register_forward_hook(lambda *_: seen.append("hook"))
    one(torch.randn(1, 3, 5, 8))
    assert seen == ["hook"]


def traffic(function) -> int:
    with bytes_moved() as counts:
        function()
    assert counts["loaded"] and counts["stored"]
    return sum(counts.values())


def test_kernels_move_what_they_must():
    """Check the bytes that kernels load and store against those of the maps, each moved once."""
    c, dtype = 16, torch.bfloat16
    x = torch.randn(1, 6, 16, c)
    parameters = parameters_of(c, torch.float32)
    weights = sum(p.numel() for p in parameters) * 4
    with torch.no_grad():
        found = traffic(lambda: depthwise_norm(x, *parameters, 1e-6, dtype))
    assert found == x.numel() * (4 + 2) + weights
    normed, w1, b1, w2, b2, gamma, beta, residual = mlp_leaves(x.shape, dtype, True, False, True)
    residual = residual.float()
    weights = 2 * sum(each.numel() for each in (w1, b1, w2, b2, beta))
    sums = 4 * 4 * c * (1 + 1)  # written by the first product; factors read by the second
    with torch.no_grad():
        found = traffic(
            lambda: mlp(normed, w1, b1, w2, b2, grn_gamma=gamma, grn_beta=beta, residual=residual)
        )
    # The hidden map, which one product writes and the other reads, counts twice.
    assert found == x.numel() * (2 + 8 + 8 + 4 + 4) + weights + sums
