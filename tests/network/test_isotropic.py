"""Isotropic ConvNeXt against the official file's definition, Table 2, and a backbone's contract."""

import pytest
import torch
import torch.nn.functional as F
from support.oracles import randomise
from torch import Tensor, nn

from backbones import InputError, IsotropicConvNeXt, IsotropicConvNeXtClassifier
from backbones.architectures import ISOTROPIC
from backbones.openmmlab.doctor.complexity import multiply_adds

NARROW = dict(depth=3, dim=8)

# Table 2: millions of parameters and GFLOPs at 224; beside them the exact numbers.
TABLE = {
    "small": (22, 4.3, 22_308_712, 4.286),
    "base": (87, 16.9, 87_083_752, 16.896),
    "large": (306, 59.7, 305_942_504, 59.699),
}


class Official(nn.Module):
    """models/convnext_isotropic.py as written there: channels first, DropPath left out."""

    def __init__(self, depth: int, dim: int, layer_scale: bool):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=16, stride=16)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
            block.norm = nn.LayerNorm(dim, eps=1e-6)
            block.pwconv1 = nn.Linear(dim, 4 * dim)
            block.pwconv2 = nn.Linear(4 * dim, dim)
            if layer_scale:
                block.gamma = nn.Parameter(torch.full((dim,), 1e-6))
            self.blocks.append(block)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1000)

    def features(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for block in self.blocks:
            y = block.dwconv(x).permute(0, 2, 3, 1)
            y = block.pwconv2(F.gelu(block.pwconv1(block.norm(y))))
            y = getattr(block, "gamma", 1.0) * y
            x = x + y.permute(0, 3, 1, 2)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x)[-1].mean([-2, -1])))


def pretrained(tmp_path, theirs: nn.Module) -> dict:
    torch.save({"model": theirs.state_dict()}, tmp_path / "convnext_iso.pth")
    return dict(type="Pretrained", checkpoint=str(tmp_path / "convnext_iso.pth"))


@pytest.mark.parametrize("arch", ISOTROPIC)
def test_parameters_and_multiply_adds_are_table_2s(arch):
    millions, gflops, params, gmacs = TABLE[arch]
    with torch.device("meta"):
        network = IsotropicConvNeXtClassifier(arch).eval()
        logits, macs = multiply_adds(network, torch.empty(1, 3, 224, 224))
    counted = sum(p.numel() for p in network.parameters())
    assert (counted, round(macs / 1e9, 3)) == (params, gmacs)
    assert round(counted / 1e6) == millions
    assert round(macs / 1e9, 1) == gflops
    assert logits.shape == (1, 1000)


@pytest.mark.parametrize("layer_scale", [0.0, 1e-6], ids=["plain", "layer scale"])
def test_classifier_is_the_official_one(layer_scale, tmp_path):
    theirs = randomise(Official(3, 8, bool(layer_scale))).eval()
    ours = IsotropicConvNeXtClassifier(
        **NARROW, layer_scale_init_value=layer_scale, init_cfg=pretrained(tmp_path, theirs)
    ).eval()
    ours.init_weights()
    for size in [(64, 64), (97, 71)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            a, b = ours(x), theirs(x)
        assert b.std() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_maps_are_the_blocks_outputs_normalised(tmp_path):
    theirs = randomise(Official(3, 8, False)).eval()
    ours = IsotropicConvNeXt(
        **NARROW, out_indices=(2, 0), init_cfg=pretrained(tmp_path, theirs)
    ).eval()
    ours.init_weights()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, features = ours(x), theirs.features(x)
    assert [tuple(m.shape) for m in maps] == [(1, 8, 4, 6)] * 2 and ours.dims == (8, 8)
    for found, i in zip(maps, (2, 0), strict=True):
        expected = F.layer_norm(features[i].permute(0, 2, 3, 1), (8,), eps=1e-6)
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter_and_are_the_official_ones():
    theirs = randomise(Official(3, 8, True)).double()
    ours = IsotropicConvNeXtClassifier(**NARROW, layer_scale_init_value=1.0).double()
    again = IsotropicConvNeXtClassifier(**NARROW, layer_scale_init_value=1.0, with_cp=True).double()
    x = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    weights = torch.randn(2, 1000, dtype=torch.float64)
    (theirs(x) * weights).sum().backward()
    for network in (ours, again):
        network.load_state_dict(theirs.state_dict())
        (network(x) * weights).sum().backward()
        for name, parameter in network.named_parameters():
            expected = theirs.get_parameter(name).grad
            assert expected.abs().sum() > 0
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-8)


def test_later_blocks_are_not_built_and_rates_stay():
    network = IsotropicConvNeXt(depth=5, dim=8, drop_path_rate=0.4, out_indices=(1, 0))
    assert len(network.blocks) == 2
    assert [block.drop_path_rate for block in network.blocks] == pytest.approx([0, 0.1])
    whole = IsotropicConvNeXt(depth=5, dim=8, drop_path_rate=0.4)
    rates = [block.drop_path_rate for block in whole.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_padding_and_freezing():
    network = randomise(IsotropicConvNeXt(**NARROW, pad_input=True, frozen=True)).eval()
    x = torch.randn(1, 3, 50, 20)
    (found,) = network(x)
    (expected,) = network(F.pad(x, (0, 12, 0, 14)))
    assert found.shape == (1, 8, 4, 2) and torch.equal(found, expected)
    assert network.train() is network
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"norm2.weight", "norm2.bias"}
    assert not network.blocks[0].training and network.norm2.training


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (dict(arch="huge"), "unknown-name"),
        (dict(depth=0), "bad-value"),
        (dict(dim=0), "bad-value"),
        (dict(drop_path_rate=1.0), "bad-value"),
        (dict(out_indices=(18,)), "bad-value"),
        (dict(out_indices=(1, 1)), "bad-value"),
        (dict(out_indices=()), "bad-value"),
        (dict(pretrained="x.pth"), "bad-value"),
    ],
)
def test_wrong_arguments_are_named(arguments, code):
    with pytest.raises(InputError) as caught:
        IsotropicConvNeXt(**arguments)
    assert (caught.value.code, [caught.value.where]) == (code, list(arguments))


def test_what_does_not_fit_is_refused(tmp_path):
    init_cfg = pretrained(tmp_path, Official(3, 8, True))
    with pytest.raises(InputError, match=r"blocks\.0\.gamma.*layer_scale_init_value"):
        IsotropicConvNeXt(**NARROW, init_cfg=init_cfg).init_weights()
    with pytest.raises(InputError, match=r"stem\.weight.*\(8, 3, 16, 16\)"):
        IsotropicConvNeXt(
            depth=3, dim=16, layer_scale_init_value=1.0, init_cfg=init_cfg
        ).init_weights()
    with pytest.raises(InputError, match=r"blocks\.3\.dwconv\.weight"):
        IsotropicConvNeXt(
            depth=4, dim=8, layer_scale_init_value=1.0, init_cfg=init_cfg
        ).init_weights()
    few = dict(num_classes=5, layer_scale_init_value=1.0)
    with pytest.raises(InputError, match="head.weight"):
        IsotropicConvNeXtClassifier(**NARROW, **few, init_cfg=init_cfg).init_weights()
    classifier = IsotropicConvNeXtClassifier(
        **NARROW, **few, init_cfg=init_cfg | dict(replace_head=True)
    )
    head = classifier.head.weight.clone()
    classifier.init_weights()
    assert torch.equal(classifier.head.weight, head)
    with pytest.raises(InputError, match="10x64") as caught:
        classifier(torch.randn(1, 3, 10, 64))
    assert caught.value.code == "bad-image"
