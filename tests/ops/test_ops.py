"""The CPU operators against their definitions in float64, forward and backward, and in a block."""

import pytest
import torch
import torch.nn.functional as F
from support.oracles import randomise
from torch import Tensor, nn

from backbones.convnext import Block, ConvNeXt
from backbones.ops import depthwise_conv, norm_mlp, winograd_conv
from backbones.ops.depthwise_conv import depthwise_conv2d, depthwise_conv2d_reference
from backbones.ops.winograd_conv import conv3x3, pays_off


def root_mean_square(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item()


def errors(function, reference, leaves: list[Tensor], exact: list[Tensor]) -> list[tuple]:
    """(error of function, error of the reference in the same dtype) against the exact result.

    Of the output first and then of the gradient of each leaf.
    """
    truth = reference(*exact)
    weights = torch.randn_like(truth)
    truths = [truth, *torch.autograd.grad(truth, exact, weights)]
    results = []
    for f in (function, reference):
        out = f(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, weights.to(out.dtype))])
    for ours, plain, leaf in zip(*results, [None, *leaves], strict=True):
        assert ours.dtype == plain.dtype and ours.shape == plain.shape
        assert leaf is None or ours.shape == leaf.shape
    return [
        (root_mean_square(ours.double() - exact), root_mean_square(plain.double() - exact))
        for ours, plain, exact in zip(*results, truths, strict=True)
    ]


def leaves_of(*shapes: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    return [v.requires_grad_() for v in values], [
        v.detach().double().requires_grad_() for v in values
    ]


@pytest.mark.instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "height", "width", "c"),
    [
        (2, 64, 64, 12), (3, 31, 47, 5), (1, 120, 201, 3),
        (2, 8, 8, 96), (2, 16, 16, 24), (1, 25, 38, 24),
    ],
)  # fmt: skip
def test_depthwise_gradients_are_as_exact_as_pytorchs(n, height, width, c, dtype):
    leaves, exact = leaves_of((n, height, width, c), (c, 1, 7, 7), (c,), dtype=dtype)
    pairs = errors(depthwise_conv2d, depthwise_conv2d_reference, leaves, exact)
    for ours, plain in pairs:
        assert ours <= 2 * plain


@pytest.mark.parametrize("at_a_time", [1, 2000, 2**19])
@pytest.mark.parametrize(
    ("n", "height", "width", "c", "k"),
    [(1, 1, 1, 3, 7), (2, 5, 3, 4, 7), (3, 13, 31, 2, 5), (1, 1, 700, 2, 7), (1, 700, 1, 2, 3)],
)
def test_depthwise_gradients_of_any_shape(n, height, width, c, k, at_a_time, monkeypatch):
    monkeypatch.setattr(depthwise_conv, "ELEMENTS_AT_A_TIME", at_a_time)
    leaves, exact = leaves_of((n, height, width, c), (c, 1, k, k), (c,), dtype=torch.float64)
    for ours, _ in errors(depthwise_conv2d, depthwise_conv2d_reference, leaves, exact):
        assert ours < 1e-12


def test_depthwise_gradient_only_where_it_is_asked_for():
    x = torch.randn(1, 9, 9, 4)
    weight = torch.randn(4, 1, 7, 7, requires_grad=True)
    depthwise_conv2d(x, weight).sum().backward()
    assert weight.grad.abs().min() > 0
    frozen = weight.detach()
    x.requires_grad_()
    depthwise_conv2d(x, frozen).sum().backward()
    assert x.grad.abs().min() > 0


def mlp(function, grn: bool, scale: bool):
    def call(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, *rest) -> Tensor:
        rest = list(rest)
        return function(
            x, norm_weight, norm_bias, 1e-6, weight1, bias1, weight2, bias2,
            scale=rest.pop() if scale else None,
            grn_gamma=rest.pop() if grn else None,
            grn_beta=rest.pop() if grn else None,
        )  # fmt: skip

    return call


def mlp_shapes(n: int, height: int, width: int, c: int, grn: bool, scale: bool) -> list[tuple]:
    wide = 4 * c
    shapes = [(n, height, width, c), (c,), (c,), (wide, c), (wide,), (c, wide), (c,)]
    return shapes + [(1, 1, 1, wide)] * 2 * grn + [(c,)] * scale


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("hidden_bytes", [1, 20000, 2**23])
@pytest.mark.parametrize(("n", "height", "width", "c"), [(2, 8, 8, 16), (3, 5, 7, 8), (1, 1, 1, 4)])
def test_mlp_equals_its_definition(n, height, width, c, hidden_bytes, grn, scale, monkeypatch):
    monkeypatch.setattr(norm_mlp, "HIDDEN_BYTES", hidden_bytes)
    shapes = mlp_shapes(n, height, width, c, grn, scale)
    leaves, exact = leaves_of(*shapes, dtype=torch.float64)
    ours, reference = (mlp(f, grn, scale) for f in (norm_mlp.norm_mlp, norm_mlp.norm_mlp_reference))
    for error, _ in errors(ours, reference, leaves, exact):
        assert error < 1e-11
    with torch.no_grad():
        torch.testing.assert_close(ours(*leaves), reference(*leaves), rtol=1e-12, atol=1e-11)


@pytest.mark.instruction_set
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_is_as_exact_as_pytorchs(dtype, grn):
    leaves, exact = leaves_of(*mlp_shapes(2, 24, 20, 32, grn, True), dtype=dtype)
    with torch.no_grad():
        for tensor, truth in zip(leaves[3:], exact[3:], strict=True):
            tensor.mul_(0.2)
            truth.copy_(tensor)
    calls = (mlp(f, grn, True) for f in (norm_mlp.norm_mlp, norm_mlp.norm_mlp_reference))
    for ours, plain in errors(*calls, leaves, exact):
        assert ours <= 2 * plain


@pytest.mark.instruction_set
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mlp_inference_is_as_exact_as_pytorchs(dtype, grn):
    leaves, exact = leaves_of(*mlp_shapes(2, 24, 20, 32, grn, True), dtype=dtype)
    calls = [mlp(f, grn, True) for f in (norm_mlp.norm_mlp, norm_mlp.norm_mlp_reference)]
    with torch.no_grad():
        truth = calls[1](*exact)
        ours, plain = (root_mean_square(f(*leaves).double() - truth) for f in calls)
    assert 0 < ours <= 2 * plain


@pytest.mark.parametrize("grn", [False, True])
def test_mlp_without_gradients_of_what_is_frozen(grn):
    leaves, _ = leaves_of(*mlp_shapes(2, 6, 6, 8, grn, True), dtype=torch.float32)
    expected = torch.autograd.grad(mlp(norm_mlp.norm_mlp, grn, True)(*leaves).sum(), leaves[0])[0]
    for leaf in leaves[1:]:
        leaf.requires_grad_(False)
    mlp(norm_mlp.norm_mlp, grn, True)(*leaves).sum().backward()
    torch.testing.assert_close(leaves[0].grad, expected)


def both_ways(block: Block, x: Tensor, monkeypatch) -> list[list[Tensor]]:
    results = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(Block, "takes_cpu_path", lambda self, x: False)
        torch.manual_seed(1)
        x.grad = None
        block.zero_grad()
        out = block(x)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in block.parameters())])
    return results


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("use_grn", [False, True])
def test_block_on_a_cpu_equals_its_definition(use_grn, drop_path_rate, with_cp, monkeypatch):
    block = randomise(Block(8, drop_path_rate, 0.0 if use_grn else 1.0, use_grn, with_cp)).double()
    x = torch.randn(5, 9, 11, 8, dtype=torch.float64, requires_grad=True)
    assert block.takes_cpu_path(x)
    fast, plain = both_ways(block, x, monkeypatch)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.instruction_set
@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_network_under_autocast(training, use_grn, monkeypatch):
    arch = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    network = randomise(ConvNeXt(arch, use_grn=use_grn, layer_scale_init_value=0.5)).train(training)
    x = torch.randn(2, 3, 64, 96)
    exact = network.double()(x.double())
    network.float()

    def maps() -> list[Tensor]:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
            return network(x)

    fast = maps()
    monkeypatch.setattr(Block, "takes_cpu_path", lambda self, x: False)
    for ours, plain, truth in zip(fast, maps(), exact, strict=True):
        assert ours.dtype == plain.dtype
        error, allowed = (root_mean_square(m.double() - truth) for m in (ours, plain))
        assert 0 < error <= 2 * allowed


def test_inference_leaves_its_input_alone():
    block = randomise(Block(8, 0.0, 1.0, False, False)).eval()
    x = torch.randn(2, 9, 9, 8)
    before = x.clone()
    with torch.no_grad():
        block(x)
    assert torch.equal(x, before)


def test_a_changed_layer_is_not_passed_over():
    x = torch.randn(1, 8, 8, 8)
    block = randomise(Block(8, 0.0, 1.0, False, False)).eval()
    seen = []
    handle = block.pwconv1.register_forward_hook(lambda *_: seen.append("hook"))
    assert not block.takes_cpu_path(x)
    block(x)
    assert seen == ["hook"]
    handle.remove()
    assert block.takes_cpu_path(x)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    doubled = Doubled(32, 8)
    doubled.load_state_dict(block.pwconv2.state_dict())
    with torch.no_grad():
        once = block.branch(x)
        block.pwconv2 = doubled
        torch.testing.assert_close(block(x) - x, 2 * once)


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.instruction_set
@pytest.mark.parametrize(
    ("n", "height", "width", "c", "o", "activation"),
    [(1, 96, 96, 128, 160, "noise"), (2, 67, 65, 192, 128, "relu")],
)
def test_winograd_is_as_exact_as_pytorchs(n, height, width, c, o, activation):
    leaves, exact = leaves_of((n, c, height, width), (o, c, 3, 3), (o,), dtype=torch.float32)
    for tensors in (leaves, exact):
        tensors[1].data /= (9 * c) ** 0.5
        if activation == "relu":
            tensors[0].data.relu_()
    assert pays_off(*leaves[:2])
    for ours, plain in errors(conv3x3, conv3x3_reference, leaves, exact):
        assert ours <= 2 * plain


@pytest.mark.parametrize("pixels", [1, 100, 4096])
@pytest.mark.parametrize(
    ("n", "height", "width", "c", "o"),
    [(1, 1, 1, 3, 2), (2, 5, 3, 4, 7), (3, 13, 31, 2, 5), (1, 1, 70, 2, 3), (1, 70, 1, 2, 3)],
)
def test_winograd_of_any_shape(n, height, width, c, o, pixels, monkeypatch):
    monkeypatch.setattr(winograd_conv, "PIXELS_AT_A_TIME", pixels)
    monkeypatch.setattr(winograd_conv, "pays_off", lambda x, weight: True)
    leaves, exact = leaves_of((n, c, height, width), (o, c, 3, 3), (o,), dtype=torch.float32)
    for ours, plain in errors(conv3x3, conv3x3_reference, leaves, exact):
        assert ours <= 4 * plain + 1e-5


@pytest.mark.instruction_set
def test_winograd_only_where_it_pays():
    x, weight = torch.randn(1, 128, 96, 96), torch.randn(128, 128, 3, 3)
    assert pays_off(x, weight)
    for other in (x.double(), x.bfloat16(), x[:, :, :48, :48], x.to("meta")):
        assert not pays_off(other, weight.to(other.dtype))
    assert not pays_off(x[:, :64], weight[:, :64])
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays_off(x, weight)
        # A few pixels: where bf16 is emulated the whole map takes seconds.
        assert conv3x3(x[:, :, :4, :4], weight).dtype == torch.bfloat16


def test_winograd_gradient_only_where_it_is_asked_for():
    x, weight = torch.randn(1, 128, 96, 96), torch.randn(128, 128, 3, 3)
    for wants_x, wants_weight in ((True, False), (False, True)):
        leaf, kernel = (
            x.clone().requires_grad_(wants_x),
            weight.clone().requires_grad_(wants_weight),
        )
        y = conv3x3(leaf, kernel)
        y.add_(1)  # in place, as the head's next level does
        y.sum().backward()
        assert (leaf.grad is not None) == wants_x and (kernel.grad is not None) == wants_weight
    with torch.inference_mode():
        assert not conv3x3(x, weight).requires_grad
