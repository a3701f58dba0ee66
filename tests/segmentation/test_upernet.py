"""The factorised head and its operator against mmseg's head and the plain definition."""

from itertools import pairwise

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.running import REPOSITORY
from torch import Tensor, nn

import backbones.openmmlab.segmentation  # noqa: F401
from backbones import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.doctor.complexity import count, multiply_adds
from backbones.ops import upsampled_conv
from backbones.ops.interpolation import interpolation_sources
from backbones.ops.upsampled_conv import upsampled_conv2d, upsampled_conv2d_reference

# Sizes of the four maps: even, odd, elongated, down to one pixel, and coarser maps larger than the
# finest one.
SIZES = [
    [(64, 48), (32, 24), (16, 12), (8, 6)],
    [(37, 61), (18, 30), (9, 15), (4, 7)],
    [(8, 160), (4, 80), (2, 40), (1, 20)],
    [(150, 6), (75, 3), (37, 1), (18, 1)],
    [(5, 7), (2, 3), (1, 1), (1, 1)],
    [(1, 9), (1, 4), (1, 2), (1, 1)],
    [(5, 4), (7, 9), (3, 3), (2, 2)],
    [(3, 90), (100, 1), (40, 2), (9, 9)],
]


def build(kind: str, *, norm: str | None = "BN", align_corners: bool = False, **kwargs):
    head = dict(
        type=kind,
        in_channels=[8, 12, 16, 20],
        in_index=[0, 1, 2, 3],
        channels=16,
        num_classes=5,
        dropout_ratio=0.0,
        norm_cfg=norm and dict(type=norm),
        align_corners=align_corners,
        **kwargs,
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(head).eval()


def pair(**kwargs) -> tuple[nn.Module, nn.Module]:
    """mmseg's head and ours with the same random weights and statistics."""
    theirs, ours = build("UPerHead", **kwargs), build("FactorizedUPerHead", **kwargs)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def features(sizes: list[tuple[int, int]], batch: int = 2, channels=(8, 12, 16, 20)):
    return [
        torch.randn(batch, c, *size, dtype=torch.float64, requires_grad=True)
        for c, size in zip(channels, sizes, strict=True)
    ]


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes[0])))
@pytest.mark.parametrize("batch", [1, 2])
def test_head_is_mmsegs(sizes, align_corners, batch):
    theirs, ours = pair(align_corners=align_corners)
    theirs.double()
    ours.double()
    maps = features(sizes, batch)
    expected, found = theirs(maps), ours(maps)
    assert expected.std() > 0.1
    assert error(found, expected) < 1e-12
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [*maps, *theirs.parameters()], gradient)
    given = torch.autograd.grad(found, [*maps, *ours.parameters()], gradient)
    for name, one, other in zip(
        [*"0123", *dict(theirs.named_parameters())], given, wanted, strict=True
    ):
        assert one.shape == other.shape
        assert error(one, other) < 1e-12, name
    with torch.no_grad():  # batch norm in the weights
        assert error(ours(maps), expected) < 1e-12


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("norm", ["BN", None])
def test_head_trains_as_mmsegs(norm, align_corners):
    theirs, ours = pair(norm=norm, align_corners=align_corners)
    theirs.double().train()
    ours.double().train()
    maps = features(SIZES[1])
    expected, found = theirs(maps), ours(maps)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [*maps, *theirs.parameters()], gradient)
    given = torch.autograd.grad(found, [*maps, *ours.parameters()], gradient)
    for one, other in zip([found, *given], [expected, *wanted], strict=True):
        assert error(one, other) < 1e-12
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


def test_only_what_asks_for_gradients_gets_them():
    theirs, ours = pair()
    theirs.double()
    ours.double()
    for part in (theirs, ours):
        part.requires_grad_(False)
        part.fpn_bottleneck.requires_grad_(True)
    maps = [x.detach() for x in features(SIZES[0])]
    for part in (theirs, ours):
        part(maps).square().sum().backward()
        assert all((p.grad is None) != p.requires_grad for p in part.parameters())
    assert (
        error(ours.fpn_bottleneck.conv.weight.grad, theirs.fpn_bottleneck.conv.weight.grad) < 1e-12
    )


@pytest.mark.instruction_set
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
)
def test_error_is_at_most_twice_mmsegs(dtype, autocast):
    theirs, ours = pair()
    sizes = [(48, 40), (24, 20), (12, 10), (6, 5)]
    maps = [x.detach() for x in features(sizes)]
    with torch.no_grad():
        exact = theirs.double()(maps)
        inputs = [x.to(torch.float32 if autocast else dtype) for x in maps]
        results = []
        for part in (theirs, ours):
            part.to(inputs[0].dtype)
            with torch.autocast("cpu", dtype, enabled=autocast):
                results.append(part(inputs))
    plain, factorised = results
    assert factorised.dtype == plain.dtype
    assert error(factorised, exact) <= 2 * error(plain, exact)


@pytest.mark.instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_at_most_twice_as_far_off(dtype):
    exact_maps = features(SIZES[0], channels=(32, 32, 32, 32))
    exact_weight = torch.randn(24, 128, 3, 3, dtype=torch.float64, requires_grad=True)
    exact = upsampled_conv2d_reference(exact_maps, exact_weight)
    gradient = torch.randn_like(exact).to(dtype).double()
    inputs = [x.detach().to(dtype).requires_grad_() for x in [*exact_maps, exact_weight]]
    wanted = torch.autograd.grad(exact, [*exact_maps, exact_weight], gradient)
    errors = []
    for function in (upsampled_conv2d_reference, upsampled_conv2d):
        out = function(inputs[:-1], inputs[-1])
        given = torch.autograd.grad(out, inputs, gradient.to(dtype))
        errors.append([error(one, other) for one, other in zip(given, wanted, strict=True)])
    for plain, ours in zip(*errors, strict=True):
        assert ours <= 2 * plain


@pytest.mark.parametrize("tile", [(1, 1), (70, 5), (10**6, 1000)])
def test_tiles_do_not_show(tile, monkeypatch):
    monkeypatch.setattr(upsampled_conv, "CPU_TILE", tile)
    maps = features([(23, 31), (11, 15), (5, 7), (1, 2)])
    weight = torch.randn(6, 56, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64)
    expected = upsampled_conv2d_reference(maps, weight, bias)
    found = upsampled_conv2d(maps, weight, bias)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        [found, *torch.autograd.grad(found, [*maps, weight], gradient)],
        [expected, *torch.autograd.grad(expected, [*maps, weight], gradient)],
        strict=True,
    ):
        assert error(one, other) < 1e-12


def test_operator_inside_a_compiled_function():
    torch._dynamo.reset()

    def twice(maps, weight):
        return 2 * upsampled_conv2d([x / 2 for x in maps], weight)

    compiled = torch.compile(twice, backend="aot_eager")
    maps = features([(9, 12), (4, 6), (2, 3), (1, 1)])
    weight = torch.randn(6, 56, 3, 3, dtype=torch.float64, requires_grad=True)
    expected, found = (f(maps, weight) for f in (upsampled_conv2d_reference, compiled))
    gradient = torch.randn_like(expected)
    for one, other in zip(
        [found, *torch.autograd.grad(found, [*maps, weight], gradient)],
        [expected, *torch.autograd.grad(expected, [*maps, weight], gradient)],
        strict=True,
    ):
        assert error(one, other) < 1e-12


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_ratio_of_sizes(align_corners):
    """The rows a tile reaches come from integer arithmetic, the coefficients from PyTorch."""
    for high in (1, 2, 7, 32, 50, 99):
        for low in range(1, high + 1):
            taps = upsampled_conv._taps(low, high, align_corners)
            sources = interpolation_sources(low, high, align_corners)
            assert all(a <= b for a, b in pairwise(sources))
            touched = taps != 0
            for start in range(0, low, 5):
                stop = min(start + 5, low)
                rows = upsampled_conv._reached(sources, start, stop)
                outside = touched[:, :, start:stop].any(2).any(1)
                outside[rows] = False
                assert not outside.any()
            for start in range(0, high, 5):
                stop = min(start + 5, high)
                columns = upsampled_conv._needed(sources, low, start, stop)
                outside = touched[start:stop].any(1).any(0)
                outside[columns] = False
                assert not outside.any()


def test_a_published_checkpoint_loads():
    """Names and shapes are mmseg's, and so is a saved file of ours."""
    theirs, ours = build("UPerHead"), build("FactorizedUPerHead")
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with torch.no_grad():
        ours([x.detach().float() for x in features(SIZES[0])])
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name])  # folding does not write to what is saved


def test_other_convolutions_are_refused():
    with pytest.raises(InputError) as caught:
        build("FactorizedUPerHead", conv_cfg=dict(type="DCNv2"))
    assert (caught.value.code, caught.value.where) == ("unsupported", "FactorizedUPerHead")


def test_a_third_of_the_multiply_adds():
    maps = [torch.empty(1, 512, 128 // s, 512 // s, device="meta") for s in (1, 2, 4, 8)]
    weight = torch.empty(512, 2048, 3, 3, device="meta")
    plain = multiply_adds(upsampled_conv2d_reference, maps, weight)[1]
    ours = multiply_adds(upsampled_conv2d, maps, weight)[1]
    assert plain == 2048 * 512 * 9 * 128 * 512
    # Products at the maps' own sizes, and at most 4 % for the interpolation.
    products = plain / 4 * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    assert products < ours <= products + 0.04 * plain


def test_complexity_counts_the_published_convolutions():
    counted = count(load_config(REPOSITORY / "configs" / "segmentation" / "upernet_convnext_t.py"))
    assert round(counted.macs["total"] / 1e9, 1) == 938.5
    assert counted.executed["total"] < 0.6 * counted.macs["total"]
    assert counted.executed["backbone"] == counted.macs["backbone"]
