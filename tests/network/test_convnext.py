"""The network against timm, torchvision, mmpretrain and transformers, and a backbone's contract."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.oracles import import_mmpretrain, randomise
from torch import nn

from backbones import (
    ARCHITECTURES,
    ConvNeXt,
    ConvNeXtClassifier,
    InputError,
    ModernizedResNet,
    fuse,
)
from backbones.backbone import LayerNorm2d
from backbones.convnext import GRN, Block
from backbones.weights import TARGETS

NARROW = dict(depths=(2, 1, 3, 2), dims=(8, 16, 24, 40))
SIZES = [(64, 96), (97, 71), (129, 161)]

# Field table: classifier V1, classifier V2, backbone with four norms V1, V2.
PARAMETERS = {
    "atto": (3_695_520, 3_708_400, 3_375_080, 3_387_960),
    "femto": (5_217_784, 5_233_240, 4_833_456, 4_848_912),
    "pico": (9_045_672, 9_066_280, 8_533_568, 8_554_176),
    "nano": (15_593_560, 15_623_800, 14_953_680, 14_983_920),
    "tiny": (28_589_128, 28_635_496, 27_821_472, 27_867_840),
    "small": (50_223_688, 50_318_440, 49_456_032, 49_550_784),
    "base": (88_591_464, 88_717_800, 87_568_256, 87_694_592),
    "large": (197_767_336, 197_956_840, 196_233_024, 196_422_528),
    "xlarge": (350_196_968, 350_449_640, 348_151_552, 348_404_224),
    "huge": (659_942_216, 660_289_640, 657_130_144, 657_477_568),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_of_every_arch(arch):
    with torch.device("meta"):
        counts = tuple(
            count(network(arch, use_grn=grn))
            for network in (ConvNeXtClassifier, ConvNeXt)
            for grn in (False, True)
        )
    assert counts == PARAMETERS[arch]


def renamed(state: dict, *rules: tuple[str, str]) -> dict:
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def from_mmpretrain(ours: ConvNeXt, use_grn: bool) -> nn.Module:
    arch = dict(depths=list(ours.depths), channels=list(ours.dims))
    theirs = import_mmpretrain().ConvNeXt(
        arch,
        use_grn=use_grn,
        layer_scale_init_value=0.0 if use_grn else 1.0,
        out_indices=[0, 1, 2, 3],
        gap_before_final_norm=False,
    )
    state = renamed(
        ours.state_dict(), (r"\.dwconv\.", ".depthwise_conv."), (r"\.pwconv", ".pointwise_conv")
    )
    state = {k: v.flatten() if ".grn." in k else v for k, v in state.items()}
    theirs.load_state_dict(state, strict=True)
    return theirs


def from_timm(ours: ConvNeXt, use_grn: bool) -> nn.Module:
    from timm.models.convnext import ConvNeXt as TimmConvNeXt

    theirs = TimmConvNeXt(
        depths=ours.depths,
        dims=ours.dims,
        use_grn=use_grn,
        ls_init_value=None if use_grn else 1.0,
        num_classes=0,
        global_pool="",
    )
    theirs.norm_pre = theirs.head.norm = nn.Identity()
    state = renamed(
        {k: v for k, v in ours.state_dict().items() if not k.startswith("norm")},
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv", ".mlp.fc"),
        (r"\.grn\.gamma", ".mlp.grn.weight"),
        (r"\.grn\.beta", ".mlp.grn.bias"),
    )
    state = {k: v.flatten() if ".grn." in k else v for k, v in state.items()}
    theirs.load_state_dict(state, strict=True)

    class Features(nn.Module):
        def forward(self, x):
            maps, x = [], theirs.stem(x)
            for i, stage in enumerate(theirs.stages):
                x = stage(x)
                maps.append(getattr(ours, f"norm{i}")(x))
            return maps

    return Features()


def from_torchvision(ours: ConvNeXt, use_grn: bool) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

    following = (*ours.dims[1:], None)
    settings = [
        CNBlockConfig(*stage) for stage in zip(ours.dims, following, ours.depths, strict=True)
    ]
    theirs = TorchvisionConvNeXt(settings, layer_scale=1.0).features
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("norm")}
    state = {
        re.sub(r"^downsample_layers\.(\d)\.", lambda m: f"{2 * int(m[1])}.", k): v
        for k, v in state.items()
    }
    state = {
        re.sub(r"^stages\.(\d)\.(\d+)\.", lambda m: f"{2 * int(m[1]) + 1}.{m[2]}.block.", k): v
        for k, v in state.items()
    }
    state = renamed(
        state,
        (r"block\.dwconv", "block.0"),
        (r"block\.norm", "block.2"),
        (r"block\.pwconv1", "block.3"),
        (r"block\.pwconv2", "block.5"),
        (r"block\.gamma", "layer_scale"),
    )
    state = {k: v[:, None, None] if "layer_scale" in k else v for k, v in state.items()}
    theirs.load_state_dict(state, strict=True)

    class Features(nn.Module):
        def forward(self, x):
            maps = []
            for i, layer in enumerate(theirs):
                x = layer(x)
                if i % 2:
                    maps.append(getattr(ours, f"norm{i // 2}")(x))
            return maps

    return Features()


def from_transformers(ours: ConvNeXt, use_grn: bool) -> nn.Module:
    import transformers

    kind = "ConvNextV2" if use_grn else "ConvNext"
    config = getattr(transformers, f"{kind}Config")(
        hidden_sizes=list(ours.dims),
        depths=list(ours.depths),
        layer_scale_init_value=1.0,
        layer_norm_eps=1e-12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = getattr(transformers, f"{kind}Backbone")(config)
    state = renamed(
        ours.state_dict(),
        (r"^downsample_layers\.0\.0\.", "embeddings.patch_embeddings."),
        (r"^downsample_layers\.0\.1\.", "embeddings.layernorm."),
        (r"^downsample_layers\.(\d)\.", r"encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d)\.(\d+)\.", r"encoder.stages.\1.layers.\2."),
        (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"(layers\.\d+)\.gamma$", r"\1.layer_scale_parameter"),
        (r"\.grn\.gamma", ".grn.weight"),
        (r"\.grn\.beta", ".grn.bias"),
    )
    for i in range(4):
        state = renamed(state, (rf"^norm{i}\.", f"hidden_states_norms.stage{i + 1}."))
    theirs.load_state_dict(state, strict=True)

    class Features(nn.Module):
        def forward(self, x):
            return theirs(x).feature_maps

    return Features()


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("peer", [from_mmpretrain, from_timm, from_torchvision, from_transformers])
def test_maps_equal_the_peers(peer, use_grn):
    if use_grn and peer is from_torchvision:
        pytest.skip("torchvision has no ConvNeXt V2")
    ours = randomise(
        ConvNeXt(NARROW, use_grn=use_grn, layer_scale_init_value=0.0 if use_grn else 1.0)
    )
    ours.eval()
    theirs = peer(ours, use_grn)
    theirs.eval()
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, (a, b) in enumerate(zip(ours(x), theirs(x), strict=True)):
                assert (
                    a.shape == b.shape == (2, ours.dims[i], height // 4 // 2**i, width // 4 // 2**i)
                )
                assert b.std() > 0.1
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("peer", [from_mmpretrain, from_timm, from_torchvision, from_transformers])
def test_tiny_equals_the_peers(peer):
    ours = ConvNeXt("tiny", layer_scale_init_value=1.0).eval()
    theirs = peer(ours, False)
    theirs.eval()  # mmpretrain returns None from it
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
def test_classifier_equals_timm(use_grn):
    import timm

    ours = randomise(
        ConvNeXtClassifier("atto", use_grn=use_grn, layer_scale_init_value=1.0 - use_grn)
    )
    theirs = timm.create_model(
        "convnextv2_atto" if use_grn else "convnext_tiny",
        depths=(2, 2, 6, 2),
        dims=(40, 80, 160, 320),
    ).eval()
    from timm.models.convnext import checkpoint_filter_fn

    state = checkpoint_filter_fn(ours.state_dict(), theirs)
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        a, b = ours.eval()(x), theirs(x)
    assert b.std() > 0.1
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
def test_gradients_equal_mmpretrain(use_grn):
    """Every parameter's and the image's gradient, in float64."""
    ours = randomise(
        ConvNeXt(NARROW, use_grn=use_grn, layer_scale_init_value=1.0 - use_grn)
    ).double()
    theirs = from_mmpretrain(ours, use_grn).double()
    theirs.load_state_dict(from_mmpretrain(ours, use_grn).state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    weights = [torch.randn_like(m) for m in ours(x)]
    grads = []
    for network in (ours, theirs):
        image = x.clone().requires_grad_()
        sum((m * w).sum() for m, w in zip(network(image), weights, strict=True)).backward()
        grads.append((image.grad, [p.grad for p in network.parameters()]))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-6, atol=1e-6)
    norms = [sorted(g.norm().item() for g in parameters) for _, parameters in grads]
    assert len(norms[0]) == len(norms[1])
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.instruction_set
def test_layer_norm_and_grn_are_as_accurate_as_plain_pytorch():
    """Against float64, in fp16 and bf16; the definitions below are V1's and V2's own."""

    def plain_layer_norm(x, weight, bias):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]

    def plain_grn(x, gamma, beta):
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        return gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + beta + x

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        norm = randomise(LayerNorm2d(24, eps=1e-6)).to(dtype)
        grn = randomise(GRN(24)).to(dtype)
        x = torch.randn(2, 24, 9, 7).to(dtype)
        y = torch.randn(2, 9, 7, 24).to(dtype)
        cases = [
            (norm(x), plain_layer_norm, (x, norm.weight, norm.bias)),
            (grn(y), plain_grn, (y, grn.gamma, grn.beta)),
        ]
        for ours, definition, arguments in cases:
            exact = definition(*(a.double() for a in arguments))
            plain = definition(*arguments)
            allowed = 2 * (plain - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
            assert ours.dtype == dtype
            assert (ours - exact).abs().max() <= allowed


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
def test_fp16_activations_of_a_thousand_stay_finite(use_grn):
    """The official layer norm squares them and overflows (facebookresearch/ConvNeXt#71)."""
    network = ConvNeXt(NARROW, use_grn=use_grn, layer_scale_init_value=1.0 - use_grn).eval()
    with torch.no_grad():
        network.downsample_layers[0][1].weight.fill_(1000.0)
        for parameter in network.parameters():
            if parameter.ndim == 4 and parameter.shape[0] == 1:
                parameter.normal_()
    x = 1000 * torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = network.double()(x.double())
        half = network.half()(x.half())
    for a, b in zip(half, exact, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().mean() < 0.02 * b.abs().mean()


class TestContract:
    def test_train_and_eval_return_self(self):
        network = ConvNeXt(NARROW, frozen_stages=2)
        assert network.train() is network
        assert network.eval() is network

    @pytest.mark.parametrize("indices", [[0, 1, 2, 3], (3, 1), [-1], (-3, 0), [1], (0,)])
    def test_out_indices(self, indices):
        given = copy.copy(indices)
        network = randomise(ConvNeXt(NARROW, out_indices=indices))
        assert indices == given
        stages = [i % 4 for i in indices]
        x = torch.randn(1, 3, 64, 64)
        maps = network(x)
        assert [m.shape[1] for m in maps] == [NARROW["dims"][i] for i in stages]
        sum(m.sum() for m in maps).backward()
        unused = [name for name, p in network.named_parameters() if p.grad is None]
        assert not unused
        whole = ConvNeXt(NARROW)
        whole.load_state_dict(network.state_dict(), strict=False)
        for a, b in zip(maps, [whole(x)[i] for i in stages], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    @pytest.mark.parametrize("frozen", range(5))
    def test_frozen_stages(self, frozen):
        network = ConvNeXt(NARROW, frozen_stages=frozen, drop_path_rate=0.5).train()
        trainable = {name for name, p in network.named_parameters() if p.requires_grad}
        expected = {
            name
            for name, _ in network.named_parameters()
            if int(re.search(r"(?:downsample_layers\.|stages\.|norm)(\d)", name)[1]) >= frozen
        }
        assert trainable == expected
        for mode in (True, False, True):
            network.train(mode)
        for i in range(4):
            assert network.stages[i].training == (i >= frozen)
            assert network.stages[i][0].training == (i >= frozen)

    def test_unbuilt_stages_keep_the_drop_path_rates(self):
        whole = ConvNeXt(NARROW, drop_path_rate=0.7)
        short = ConvNeXt(NARROW, drop_path_rate=0.7, out_indices=(1,))
        rates = [[b.drop_path_rate for stage in n.stages for b in stage] for n in (whole, short)]
        torch.testing.assert_close(rates[0], torch.linspace(0, 0.7, 8).double().tolist())
        assert rates[1] == rates[0][:3]

    def test_builds_and_runs_on_the_meta_device(self):
        with torch.device("meta"):
            network = ConvNeXt("huge", use_grn=True, drop_path_rate=0.3)
            maps = network(torch.empty(2, 3, 800, 1280))
        assert [tuple(m.shape) for m in maps] == [
            (2, 352, 200, 320),
            (2, 704, 100, 160),
            (2, 1408, 50, 80),
            (2, 2816, 25, 40),
        ]

    def test_activation_checkpointing_gives_the_same_gradients(self):
        network = randomise(ConvNeXt(NARROW, drop_path_rate=0.5))
        again = ConvNeXt(NARROW, drop_path_rate=0.5, with_cp=True)
        again.load_state_dict(network.state_dict())
        x = torch.randn(4, 3, 64, 64)
        for n in (network, again):
            torch.manual_seed(3)
            sum(m.square().sum() for m in n(x)).backward()
        for (name, a), b in zip(network.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name

    def test_activation_checkpointing_keeps_no_generators_state(self, monkeypatch):
        network, read = ConvNeXt(NARROW, with_cp=True), []
        get_state = torch.get_rng_state
        monkeypatch.setattr(torch, "get_rng_state", lambda: read.append(1) or get_state())
        sum(m.square().sum() for m in network(torch.randn(1, 3, 64, 64))).backward()
        assert network.stages[0][0].pwconv1.weight.grad.any() and not read

    @pytest.mark.parametrize(
        "arguments, code",
        [
            (dict(arch="gigantic"), "unknown-name"),
            (dict(arch=dict(depths=(1, 2), channels=(3, 4))), "bad-value"),
            (dict(arch=dict(depths=(1, 2), dims=(3,))), "bad-value"),
            (dict(arch=dict(depths=(1, 0), dims=(3, 4))), "bad-value"),
            (dict(out_indices=(4,)), "bad-value"),
            (dict(out_indices=(3, -1)), "bad-value"),
            (dict(out_indices=()), "bad-value"),
            (dict(frozen_stages=5), "bad-value"),
            (dict(drop_path_rate=1.0), "bad-value"),
            (dict(output_stride=4), "bad-value"),
            (dict(pretrained="open-mmlab://resnet50"), "bad-value"),
        ],
    )
    def test_wrong_arguments_are_named(self, arguments, code):
        with pytest.raises(InputError) as caught:
            ConvNeXt(**arguments)
        assert (caught.value.code, [caught.value.where]) == (code, list(arguments))
        assert "\n" not in str(caught.value)

    def test_pretrained_none_of_stock_configs(self):
        assert ConvNeXt(NARROW, pretrained=None).init_cfg is None

    def test_unknown_argument_is_an_error(self):
        with pytest.raises(TypeError, match="drop_path"):
            ConvNeXt("atto", drop_path=0.1)


class TestFuse:
    @pytest.mark.instruction_set
    @pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
    def test_same_maps_from_an_untouched_network(self, use_grn):
        network = randomise(ConvNeXt(NARROW, use_grn=use_grn)).eval()
        before = copy.deepcopy(network.state_dict())
        x = torch.randn(2, 3, 97, 71)
        with torch.no_grad():
            maps, fused = network(x), fuse(network)(x)
            with torch.autocast("cpu", torch.bfloat16):
                in_bf16 = network(x)
            fused_in_bf16 = fuse(network, torch.bfloat16)(x)
        for plain, folded, cast, folded_cast in zip(
            maps, fused, in_bf16, fused_in_bf16, strict=True
        ):
            assert (plain - folded).abs().max() <= 1e-5 * plain.abs().max()
            error = (cast - plain).abs()
            assert (folded_cast - plain).abs().mean() <= 1.5 * error.mean()
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key]), key

    @pytest.mark.instruction_set
    def test_classifier(self):
        network = randomise(ConvNeXtClassifier(NARROW, num_classes=5)).eval()
        x = torch.randn(2, 3, 64, 64)
        logits = network(x)
        assert (fuse(network)(x) - logits).abs().max() <= 1e-5 * logits.abs().max()
        assert (fuse(network, torch.bfloat16)(x) - logits).abs().max() <= 0.1 * logits.abs().max()

    def test_is_for_inference(self):
        network = ConvNeXt(NARROW, layer_scale_init_value=1.0)
        with pytest.raises(InputError, match="float16") as caught:
            fuse(network, torch.float16)
        assert caught.value.where == "dtype"
        with pytest.raises(InputError) as caught:
            fuse(network).train()
        assert caught.value.code == "unsupported"
        assert network.train().training


class TestSizes:
    def test_default_is_the_official_network_and_says_once_what_it_drops(self):
        network = ConvNeXt(NARROW).eval()
        x = torch.randn(1, 3, 513, 769)
        with pytest.warns(UserWarning, match="513x769.*pad_input"):
            maps = network(x)
        assert [tuple(m.shape[2:]) for m in maps] == [(128, 192), (64, 96), (32, 48), (16, 24)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cut = network(x[:, :, :512, :768])
            network(x)
        for a, b in zip(maps, cut, strict=True):
            torch.testing.assert_close(a, b)

    def test_pad_input_lets_the_last_row_and_column_reach_the_maps(self):
        network = randomise(ConvNeXt(NARROW, pad_input=True)).eval()
        x = torch.randn(1, 3, 513, 769)
        maps = network(x)
        assert [tuple(m.shape[2:]) for m in maps] == [(136, 200), (68, 100), (34, 50), (17, 25)]
        padded = network(F.pad(x, (0, 31, 0, 31)))
        for a, b in zip(maps, padded, strict=True):
            torch.testing.assert_close(a, b)
        x.requires_grad_()
        for m in network(x):
            (grad,) = torch.autograd.grad(m.sum() + m.square().sum(), x, retain_graph=True)
            assert grad[..., -1, :].abs().sum() > 0
            assert grad[..., :, -1].abs().sum() > 0

    def test_an_image_smaller_than_the_stride_is_refused(self):
        with pytest.raises(InputError, match="16x64.*pad_input") as caught:
            ConvNeXt(NARROW)(torch.randn(1, 3, 16, 64))
        assert caught.value.code == "bad-image"


class TestMapsThatNobodyReads:
    """Their norms get gradients of zero, and nothing else changes by so much as a bit."""

    def grads(self, network: nn.Module, x: torch.Tensor, read: tuple[int, ...]) -> list:
        network.zero_grad()
        maps = network(x)
        sum(maps[i].square().sum() for i in read).backward()
        return [p.grad for p in network.parameters()]

    @pytest.mark.parametrize("read", [(3,), (1, 3), (2, 3), (0, 1, 2, 3)])
    def test_no_parameter_is_without_a_gradient(self, read):
        network = randomise(ConvNeXt(NARROW)).train()
        x = torch.randn(2, 3, 64, 64)
        maps, grads = network(x), self.grads(network, x, read)
        for (name, _), grad in zip(network.named_parameters(), grads, strict=True):
            unread = name.startswith("norm") and int(name[4]) not in read
            assert bool(grad.abs().sum() == 0) == unread, name
        network._tie = lambda: None
        for ours, plain in zip(maps, network(x), strict=True):
            assert torch.equal(ours, plain)
        for ours, plain in zip(grads, self.grads(network, x, read), strict=True):
            assert torch.equal(ours, torch.zeros_like(ours) if plain is None else plain)

    def test_not_a_number_does_not_spread_to_them(self):
        network = ConvNeXt(NARROW).train()
        (network(torch.randn(1, 3, 64, 64))[3] * float("nan")).sum().backward()
        assert network.norm3.weight.grad.isnan().all()
        assert (network.norm0.weight.grad == 0).all()

    @pytest.mark.parametrize("autocast", [False, True])
    def test_norms_of_every_kind(self, autocast):
        network = ModernizedResNet("fewer_norms", design=dict(depths=(1, 1, 1, 1), width=8)).train()
        assert isinstance(network.norm0, nn.BatchNorm2d)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            network(torch.randn(2, 3, 64, 64))[3].sum().backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_frozen_norms_stay_without(self):
        network = ConvNeXt(NARROW, frozen_stages=2).train()
        network(torch.randn(1, 3, 64, 64))[3].sum().backward()
        without = {name for name, p in network.named_parameters() if p.grad is None}
        assert without == {n for n, p in network.named_parameters() if not p.requires_grad}
        assert "norm1.weight" in without and "norm2.weight" not in without

    def test_graphs(self):
        """A compiled graph has the gradients too; one for inference has no trace of them."""
        network = randomise(ConvNeXt(NARROW)).train()
        x = torch.randn(1, 3, 64, 64)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        compiled(x)[3].sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        exported = torch.export.export(network.eval(), (x,))
        assert not any("cat" in str(node.target) for node in exported.graph.nodes)


class TestMemoryFormat:
    def test_channels_last_unless_asked_for(self):
        network = randomise(ConvNeXt(NARROW)).eval()
        contiguous = ConvNeXt(NARROW, contiguous_maps=True).eval()
        contiguous.load_state_dict(network.state_dict())
        x = torch.randn(2, 3, 64, 64)
        for last, first in zip(network(x), contiguous(x), strict=True):
            assert last.is_contiguous(memory_format=torch.channels_last)
            assert first.is_contiguous() and torch.equal(last, first)
            assert first.view(2, -1).shape[1] == first[0].numel()


class TestOutputStride:
    @pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
    @pytest.mark.parametrize("stride", [8, 16, 32])
    def test_maps_equal_timms(self, stride, use_grn):
        import timm

        ours = ConvNeXt(
            NARROW,
            use_grn=use_grn,
            layer_scale_init_value=1.0 - use_grn,
            output_stride=stride,
        )
        randomise(ours).eval()
        theirs = timm.create_model(
            "convnextv2_atto" if use_grn else "convnext_tiny",
            depths=NARROW["depths"],
            dims=NARROW["dims"],
            features_only=True,
            output_stride=stride,
        ).eval()
        state = {
            TARGETS["timm"]
            .outward(name)
            .replace("stem.", "stem_", 1)
            .replace("stages.", "stages_"): tensor
            for name, tensor in ours.state_dict().items()
            if not name.startswith("norm")
        }
        wanted = theirs.state_dict()
        theirs.load_state_dict({k: v.reshape(wanted[k].shape) for k, v in state.items()})
        x = torch.randn(2, 3, 96, 64)
        with torch.no_grad():
            expected = theirs(x)
            found = list(ours.forward_stages(x))
        assert ours.stride == stride
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a.shape[-2:] == (96 // min(4 * 2**i, stride), 64 // min(4 * 2**i, stride))
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    def test_same_parameters_and_gradients_as_its_definition(self):
        dense, strided = ConvNeXt(NARROW, output_stride=8), ConvNeXt(NARROW)
        randomise(strided)
        dense.load_state_dict(strided.state_dict(), strict=True)
        dense.train()
        sum(m.square().sum() for m in dense(torch.randn(1, 3, 64, 64))).backward()
        assert all(p.grad.abs().sum() > 0 for p in dense.parameters())


class TestStochasticDepth:
    def test_equals_per_sample_drop_path(self):
        """Values and gradients of the textbook form under the same draw, sample 0 kept or not."""
        block = randomise(Block(8, 0.5, 1.0, False, False)).double().train()
        for seed in range(6):
            x = torch.randn(5, 6, 7, 8, dtype=torch.float64)
            torch.manual_seed(seed)
            keep = (torch.rand(5) >= 0.5).double()
            reference_x = x.clone().requires_grad_()
            reference = reference_x + keep.view(-1, 1, 1, 1) / 0.5 * block.branch(reference_x)
            expected = torch.autograd.grad(
                reference.square().sum(), [reference_x, *block.parameters()]
            )
            torch.manual_seed(seed)
            ours_x = x.clone().requires_grad_()
            ours = block(ours_x)
            actual = torch.autograd.grad(ours.square().sum(), [ours_x, *block.parameters()])
            torch.testing.assert_close(ours, reference)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b)

    def test_keeps_the_expected_share_and_mean(self):
        block = randomise(Block(4, 0.3, 1.0, False, False)).train()
        x = torch.randn(1, 2, 2, 4).expand(4000, 2, 2, 4)
        with torch.no_grad():
            added = block(x) - x
            dropped = (added.flatten(1).abs().sum(1) == 0).float().mean()
            branch = block.branch(x[:1])
        assert 0.27 < dropped < 0.33  # 4 standard deviations of 4000 draws
        torch.testing.assert_close(added.mean(0), branch[0], rtol=0.1, atol=0.02)

    def test_all_dropped_leaves_zero_and_not_missing_gradients(self):
        network = randomise(ConvNeXt(NARROW, drop_path_rate=0.9)).train()
        network.stages[3][1].drop_path_rate = 1 - 1e-9
        x = torch.randn(2, 3, 64, 64)
        sum(m.sum() for m in network(x)).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
        dropped = list(network.stages[3][1].parameters())
        assert all((p.grad == 0).all() for p in dropped)

    def test_evaluation_drops_nothing(self):
        network = randomise(ConvNeXt(NARROW, drop_path_rate=0.9)).eval()
        x = torch.randn(2, 3, 64, 64)
        for a, b in zip(network(x), network(x), strict=True):
            assert torch.equal(a, b)


def test_unknown_depthwise_layout():
    with pytest.raises(InputError) as caught:
        ConvNeXt("atto", depthwise_layout="nchw")
    assert (caught.value.code, caught.value.where) == ("bad-value", "depthwise_layout")
