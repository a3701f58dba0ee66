"""Layer decay: published multipliers, mmdet's and mmseg's own constructors, wrappers, errors."""

import copy
import importlib
import importlib.util
import logging
import re
import subprocess
import sys

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, build_optim_wrapper
from support.oracles import import_mmpretrain
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from backbones import ARCHITECTURES, ConvNeXt, ConvNeXtClassifier
from backbones.errors import InputError
from backbones.openmmlab.training.layer_decay import LayerDecayConstructor, locate, num_layers

LR, WEIGHT_DECAY = 2e-4, 0.05
DIMS = (4, 8, 12, 16)
T, S = (3, 3, 9, 3), (3, 3, 27, 3)


class Detector(nn.Module):
    """Backbone, neck and head in the places where mmdet and mmseg have them."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.ModuleList(nn.Conv2d(dim, 6, 1) for dim in DIMS)
        self.head = nn.Sequential(nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 1))


class Wrapper(nn.Module):
    """Any module around another, under a name of choice."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def detector(depths=T, **kwargs) -> Detector:
    return Detector(ConvNeXt(dict(depths=depths, dims=DIMS), **kwargs))


def build(model, constructor=LayerDecayConstructor, optimizer=None, **paramwise_cfg):
    optimizer = optimizer or dict(
        type="AdamW", lr=LR, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY
    )
    cfg = dict(
        type="OptimWrapper",
        constructor=constructor,
        paramwise_cfg=paramwise_cfg,
        optimizer=optimizer,
    )
    return build_optim_wrapper(model, cfg)


def settings(optim_wrapper) -> dict[str, tuple]:
    """(lr, weight decay, lr scale, group name) of every parameter, by name."""
    return {
        name: (group["lr"], group["weight_decay"], group["lr_scale"], group["group_name"])
        for group in optim_wrapper.optimizer.param_groups
        for name in group["param_names"]
    }


def scales(optim_wrapper, model) -> dict[nn.Parameter, float]:
    """lr of every parameter over the base lr, and a check that each is in one group only."""
    result = {}
    for group in optim_wrapper.optimizer.param_groups:
        for param in group["params"]:
            assert param not in result
            result[param] = group["lr"] / LR
    assert set(result) == {p for p in model.parameters() if p.requires_grad}
    return result


@pytest.fixture
def logged():
    """The texts logged during the test."""
    texts = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def test_number_of_layers():
    published = dict(nano=6, tiny=6, small=12, base=12, large=12, xlarge=12, huge=12)
    assert published | dict(atto=6, femto=6, pico=6) == {
        name: num_layers(arch["depths"]) for name, arch in ARCHITECTURES.items()
    }
    assert [num_layers((3, 3, d, 3)) for d in (1, 10, 12, 13, 18, 36)] == [6, 7, 7, 8, 9, 15]


@pytest.mark.parametrize("blocks", range(1, 41))
def test_no_block_of_stage_3_reaches_the_layer_of_stage_4(blocks):
    depths = (2, 2, blocks, 2)
    ids = [locate(f"stages.2.{b}.gamma", depths, "layer_wise")[0] for b in range(blocks)]
    assert ids == [3 + b // 3 for b in range(blocks)]
    assert ids[-1] < locate("stages.3.0.gamma", depths, "layer_wise")[0] == num_layers(depths)


# Published recipes: stem, stage 1, downsample 2 and stage 2, downsample 3 and the first blocks of
# stage 3, its last blocks, downsample 4 and stage 4; computed with mmdet's own constructor.
LAYER_WISE = {
    "cascade_t": (T, 0.7, (0.0824, 0.1176, 0.1681, 0.2401, 0.49, 0.7)),
    "mask_rcnn_t": (T, 0.95, (0.6983, 0.7351, 0.7738, 0.8145, 0.9025, 0.95)),
    "cascade_s_l_xl": (S, 0.7, (0.0097, 0.0138, 0.0198, 0.0282, 0.49, 0.7)),
    "cascade_b": (S, 0.8, (0.055, 0.0687, 0.0859, 0.1074, 0.64, 0.8)),
}


@pytest.mark.parametrize("depths, rate, golden", LAYER_WISE.values(), ids=LAYER_WISE)
def test_golden_multipliers_layer_wise(depths, rate, golden):
    found = settings(build(detector(depths), decay_rate=rate, decay_type="layer_wise"))
    stem, stage1, stage2, first, last, stage4 = golden
    # Literal names, so that the expectation does not come from the code under test.
    expected = {
        "downsample_layers.0.0.weight": stem,
        "downsample_layers.0.1.weight": stem,
        "stages.0.0.dwconv.weight": stage1,
        "stages.0.2.gamma": stage1,
        "downsample_layers.1.1.weight": stage2,
        "stages.1.0.norm.bias": stage2,
        "stages.1.2.pwconv2.weight": stage2,
        "downsample_layers.2.0.bias": first,
        "stages.2.0.pwconv1.weight": first,
        "stages.2.2.pwconv1.weight": first,
        f"stages.2.{depths[2] - 3}.gamma": last,
        f"stages.2.{depths[2] - 1}.gamma": last,
        "downsample_layers.3.1.bias": stage4,
        "stages.3.0.dwconv.bias": stage4,
        "stages.3.2.pwconv2.bias": stage4,
        **{f"norm{i}.weight": 1 for i in range(4)},
    }
    for name, scale in expected.items():
        lr, _, lr_scale, _ = found[f"backbone.{name}"]
        assert lr_scale == pytest.approx(scale, abs=5e-5), name
        assert lr == pytest.approx(scale * LR, abs=5e-5 * LR), name
    for name in ("neck.0.weight", "head.0.bias", "head.1.weight"):
        assert found[name][0] == LR, name


@pytest.mark.parametrize(
    "depths, stem, stages",
    [
        (T, 0.4783, (0.5314, 0.5905, 0.6561, 0.729)),
        (S, 0.2542, (0.2824, 0.3138, 0.3487, 0.3874)),
    ],
    ids=["upernet_t", "upernet_s_b_l_xl"],
)
def test_golden_multipliers_stage_wise(depths, stem, stages):
    found = settings(build(detector(depths), decay_rate=0.9, decay_type="stage_wise"))
    for name, (lr, *_) in found.items():
        part = re.match(r"backbone\.(downsample_layers|stages)\.(\d)", name)
        scale = 1 if not part else stem if part[1] != "stages" else stages[int(part[2])]
        assert lr == pytest.approx(scale * LR, abs=5e-5 * LR), name
    assert sum(lr < 0.99 * LR for lr, *_ in found.values()) == 8 + 8 + 9 * sum(depths)


@pytest.fixture(params=["mmdet", "mmseg"])
def peer(request, monkeypatch):
    """The constructor of mmdet or mmseg, from its file: their packages would import every model."""
    registry = importlib.import_module(f"{request.param}.registry").OPTIM_WRAPPER_CONSTRUCTORS
    # The file registers its class, which a test that imports the whole package does again.
    monkeypatch.setattr(registry, "_module_dict", {})
    root = importlib.util.find_spec(request.param).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(
        f"{request.param}_layer_decay",
        f"{root}/engine/optimizers/layer_decay_optimizer_constructor.py",
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LearningRateDecayOptimizerConstructor


@pytest.mark.parametrize("decay_type, rate", [("layer_wise", 0.7), ("stage_wise", 0.9)])
@pytest.mark.parametrize("arch, layers", [("tiny", 6), ("small", 12), ("base", 12), ("atto", 6)])
def test_every_parameter_as_in_mmdet_and_mmseg(peer, arch, layers, decay_type, rate):
    with torch.device("meta"):
        model = Detector(ConvNeXt(arch))
    ours = build(model, decay_rate=rate, decay_type=decay_type)
    theirs = build(model, peer, decay_rate=rate, decay_type=decay_type, num_layers=layers)
    assert settings(ours) == settings(theirs)
    assert len(settings(ours)) == len(list(model.parameters()))


def test_grn_alone_differs_from_mmdet_and_mmseg(peer):
    model = detector(use_grn=True)
    ours = settings(build(model, decay_rate=0.7))
    theirs = settings(build(model, peer, decay_rate=0.7, num_layers=6))
    different = {name for name in ours if ours[name][:3] != theirs[name][:3]}
    assert different == {name for name in ours if ".grn." in name}
    assert len(different) == 2 * sum(T)
    for name in different:
        assert ours[name][1] == 0 and theirs[name][1] == WEIGHT_DECAY
        assert ours[name][0] == theirs[name][0]


def test_weight_decay_of_every_kind_of_parameter():
    model = detector(use_grn=True, layer_scale_init_value=1e-6)
    model.head.add_module("scale", nn.Module())
    model.head.scale.register_parameter("scalar", nn.Parameter(torch.ones(())))
    model.head.scale.register_parameter("bias", nn.Parameter(torch.ones(2, 3)))
    decayed = {
        name
        for name, (_, decay, *_) in settings(build(model, decay_rate=0.7)).items()
        if decay == WEIGHT_DECAY
    }
    kernels = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert decayed == kernels


def wrap_twice(model: Detector) -> nn.Module:
    return Wrapper(model=Wrapper(teacher=model), adapter=nn.Linear(3, 3))


@pytest.mark.parametrize(
    "wrap",
    [
        wrap_twice,
        lambda model: Wrapper(module=model),
        lambda model: Wrapper(model=Wrapper(module=model)),
        lambda model: Wrapper(image_encoder=model.backbone, mask_decoder=model.head),
        lambda model: Detector(torch.compile(model.backbone)),
        lambda model: model.backbone,
    ],
    ids=["teacher", "module", "model.module", "renamed", "compiled", "bare backbone"],
)
def test_backbone_is_found_under_any_name(wrap):
    model = detector()
    expected = scales(build(model, decay_rate=0.7), model)
    wrapped = wrap(model)
    found = scales(build(wrapped, decay_rate=0.7), wrapped)
    backbone = set(model.backbone.parameters())
    assert backbone <= set(found) and min(found.values()) == pytest.approx(0.7**7)
    for param, scale in found.items():
        assert scale == (expected[param] if param in backbone else 1)


def test_distributed_model(tmp_path):
    model = detector()
    expected = settings(build(model, decay_rate=0.7))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        assert settings(build(DistributedDataParallel(model), decay_rate=0.7)) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_classifier_head_and_norm_are_not_scaled():
    model = ConvNeXtClassifier(dict(depths=T, dims=DIMS), num_classes=5)
    found = settings(build(model, decay_rate=0.7))
    assert {name for name, (lr, *_) in found.items() if lr == LR} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_two_backbones_of_different_depths():
    model = Wrapper(student=detector(T), teacher=detector(S))
    optim_wrapper = build(model, decay_rate=0.7)
    found = scales(optim_wrapper, model)
    for part in (model.student, model.teacher):
        alone = scales(build(part, decay_rate=0.7), part)
        assert all(found[param] == pytest.approx(alone[param], rel=1e-12) for param in alone)
    by_id = {}
    for group in optim_wrapper.optimizer.param_groups:
        layer = int(group["group_name"].split("_")[1])
        assert by_id.setdefault(layer, group["lr_scale"]) == group["lr_scale"]
    assert len(by_id) == 14


def test_shared_parameters_appear_once():
    model = detector()
    model.encoder = model.backbone
    model.head[2].weight = model.neck[0].weight
    found = scales(build(model, decay_rate=0.7), model)
    assert len(found) == len(list(model.parameters()))
    # The second name of a shared parameter serves a custom key as well as the first.
    optim_wrapper = build(model, decay_rate=0.7, custom_keys={"encoder.norm0": dict(lr_mult=3.0)})
    norm = {id(p) for p in model.backbone.norm0.parameters()}
    for group in optim_wrapper.optimizer.param_groups:
        for param in group["params"]:
            assert group["lr"] / LR == pytest.approx(found[param] * (3 if id(param) in norm else 1))


def test_frozen_parameters_are_left_out(logged):
    model = detector(frozen_stages=2)
    names = set(settings(build(model, decay_rate=0.7)))
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert names.isdisjoint(frozen) and names | frozen == set(dict(model.named_parameters()))
    assert any(name.startswith("backbone.stages.1.") for name in frozen)
    count = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert f"not trained: {count:,} frozen parameters" in logged[-1]


def test_unbuilt_last_stages_do_not_change_the_scales():
    model = detector()
    whole = settings(build(model, decay_rate=0.7))
    model.backbone = ConvNeXt(dict(depths=T, dims=DIMS), out_indices=(0, 1))
    part = settings(build(model, decay_rate=0.7))
    assert not any("stages.2" in name for name in part)
    assert part == {name: whole[name] for name in part}


def test_custom_keys():
    model = detector()
    plain = settings(build(model, decay_rate=0.7))
    custom_keys = {
        "head": dict(lr_mult=10.0),
        "head.1": dict(lr_mult=5.0),
        "norm": dict(decay_mult=0.0),
        "pwconv1": dict(decay_mult=0.5),
        "stages.3": dict(lr_mult=0.1, decay_mult=2.0),
    }
    found = settings(build(model, decay_rate=0.7, custom_keys=custom_keys))
    assert found.keys() == plain.keys()
    for name, (lr, decay, lr_scale, _) in found.items():
        key = max((key for key in custom_keys if key in name), key=len, default=None)
        factors = custom_keys.get(key, {})
        assert lr == pytest.approx(plain[name][0] * factors.get("lr_mult", 1.0), rel=1e-12), name
        assert decay == pytest.approx(plain[name][1] * factors.get("decay_mult", 1.0)), name
        assert lr == lr_scale * LR
    assert found["head.0.weight"][:2] == (pytest.approx(10 * LR), WEIGHT_DECAY)
    assert found["head.1.weight"][0] == pytest.approx(5 * LR)
    assert found["backbone.stages.3.0.pwconv1.weight"][:2] == (pytest.approx(0.07 * LR), 0.1)
    assert found["backbone.stages.1.0.pwconv1.weight"][1] == 0.025
    assert found["backbone.stages.1.0.pwconv1.weight"][3] == "layer_2_decay_pwconv1"
    assert (
        found["backbone.stages.0.0.norm.weight"][:2] == plain["backbone.stages.0.0.norm.weight"][:2]
    )


def test_equally_long_custom_keys_are_taken_in_alphabetical_order():
    custom_keys = {"d.2": dict(lr_mult=3.0), "2.w": dict(lr_mult=2.0)}
    found = settings(build(detector(), decay_rate=0.7, custom_keys=custom_keys))
    assert found["head.2.weight"][0] == pytest.approx(2 * LR)
    assert found["head.2.bias"][0] == pytest.approx(3 * LR)


def test_no_decay_by_custom_key_where_there_was_some():
    found = settings(build(detector(), decay_rate=0.7, custom_keys={"neck": dict(decay_mult=0.0)}))
    assert found["neck.0.weight"] == (LR, 0.0, 1.0, "layer_7_no_decay_neck")


def bad(model=detector, optimizer=None, **paramwise_cfg):
    return model, optimizer, paramwise_cfg


ERRORS = {
    "no settings": (bad(), "decay_rate", ()),
    "no decay_rate": (bad(decay_type="layer_wise"), "decay_rate", ()),
    "rate 0": (bad(decay_rate=0), "decay_rate", ("decay_rate=0", "(0, 1]")),
    "rate above 1": (bad(decay_rate=1.5), "decay_rate", ("decay_rate=1.5",)),
    "rate as text": (bad(decay_rate="0.7"), "decay_rate", ("'0.7'",)),
    "rate NaN": (bad(decay_rate=float("nan")), "decay_rate", ("nan",)),
    "decay type": (
        bad(decay_rate=0.7, decay_type="layerwise"),
        "decay_type",
        ("'layerwise'", "layer_wise", "stage_wise"),
    ),
    "unknown key": (
        bad(decay_rate=0.7, norm_decay_mult=0.0),
        "norm_decay_mult",
        ("decay_rate, decay_type, num_layers, custom_keys",),
    ),
    "T with 12": (
        bad(decay_rate=0.7, num_layers=12),
        "num_layers",
        ("num_layers=12", "backbone", "(3, 3, 9, 3)", "6 layers"),
    ),
    "B with 6": (
        bad(lambda: Wrapper(model=detector(S)), decay_rate=0.8, num_layers=6),
        "num_layers",
        ("num_layers=6", "model.backbone", "(3, 3, 27, 3)", "12 layers"),
    ),
    "no ConvNeXt": (bad(lambda: nn.Conv2d(3, 4, 1), decay_rate=0.7), "Conv2d", ()),
    "three stages": (
        bad(
            lambda: ConvNeXt(dict(depths=(2, 6, 2), dims=DIMS[:3]), out_indices=(0,)),
            decay_rate=0.7,
        ),
        "depths",
        ("(2, 6, 2)",),
    ),
    "custom key unused": (
        bad(decay_rate=0.7, custom_keys={"decode_head": dict(lr_mult=10.0)}),
        "custom_keys['decode_head']",
        (),
    ),
    "custom key's factor": (
        bad(decay_rate=0.7, custom_keys={"head": dict(lr_mul=10.0)}),
        "custom_keys['head']",
        ("lr_mul", "lr_mult", "decay_mult"),
    ),
    "custom key's value": (
        bad(decay_rate=0.7, custom_keys={"head": dict(lr_mult=-1)}),
        "custom_keys['head']",
        ("lr_mult=-1",),
    ),
    "custom key without a dict": (
        bad(decay_rate=0.7, custom_keys={"head": 10.0}),
        "custom_keys['head']",
        ("10.0",),
    ),
    "custom keys in a list": (bad(decay_rate=0.7, custom_keys=["head"]), "custom_keys", ()),
    "no lr": (
        bad(optimizer=dict(type="AdamW", weight_decay=0.05), decay_rate=0.7),
        "lr",
        (),
    ),
    "no weight decay": (
        bad(optimizer=dict(type="AdamW", lr=1e-4), decay_rate=0.7),
        "weight_decay",
        (),
    ),
}


@pytest.mark.parametrize("case, where, names", ERRORS.values(), ids=ERRORS)
def test_mistakes_are_named(case, where, names):
    model, optimizer, paramwise_cfg = case
    with pytest.raises(InputError) as caught:
        build(model(), optimizer=optimizer, **paramwise_cfg)
    code = "unknown-key" if where == "norm_decay_mult" else "bad-value"
    assert (caught.value.code, caught.value.where) == (code, where)
    text = str(caught.value)
    assert "\n" not in text and all(name in text for name in (where, *names)), text


@pytest.mark.parametrize("paramwise_cfg", [None, {}])
def test_missing_paramwise_cfg_is_an_error(paramwise_cfg):
    with pytest.raises(InputError) as caught:
        LayerDecayConstructor(dict(optimizer=dict(type="SGD", lr=1.0)), paramwise_cfg)
    assert caught.value.where == "decay_rate"


def test_num_layers_that_agrees_is_accepted():
    model = detector()
    agreeing = settings(build(model, decay_rate=0.7, num_layers=6))
    assert agreeing == settings(build(model, decay_rate=0.7))


def test_a_step_moves_parameters_by_their_own_learning_rate():
    model = detector(use_grn=True).double()
    for param in model.backbone.parameters():
        nn.init.normal_(param, std=0.5)
    lr, decay, rate = 0.1, 0.05, 0.7
    optimizer = dict(type="SGD", lr=lr, weight_decay=decay)
    optim_wrapper = build(model, optimizer=optimizer, decay_rate=rate)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    maps = model.backbone(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    maps = [conv(x) for conv, x in zip(model.neck, maps, strict=True)]
    loss = model.head(maps[0]).square().mean() + sum(x.square().mean() for x in maps)
    optim_wrapper.backward(loss)
    optim_wrapper.step()

    exponents = {
        **{"downsample_layers.0": 7, "stages.0": 6, "downsample_layers.1": 5, "stages.1": 5},
        **{"downsample_layers.2": 4, "downsample_layers.3": 1, "stages.3": 1},
        **{f"stages.2.{block}": 4 - block // 3 for block in range(9)},
    }
    moved = 0
    for name, param in model.named_parameters():
        inner = name.removeprefix("backbone.")
        exponent = next((e for key, e in exponents.items() if inner.startswith(f"{key}.")), 0)
        this_decay = 0.0 if param.ndim == 1 or ".grn." in name else decay
        step = lr * rate**exponent * (param.grad + this_decay * before[name])
        torch.testing.assert_close(param.detach(), before[name] - step, rtol=1e-12, atol=1e-14)
        moved += bool((param.detach() != before[name]).any())
    assert moved == len(before)


def test_scheduler_and_resume():
    def train(optim_wrapper, model, steps):
        scheduler = LinearLR(optim_wrapper, start_factor=0.5, end=4, by_epoch=False)
        for _ in range(steps):
            optim_wrapper.update_params(sum(p.square().sum() for p in model.parameters()))
            scheduler.step()

    model = detector()
    optim_wrapper = build(model, decay_rate=0.7)
    train(optim_wrapper, model, steps=2)
    halfway = 0.5 + 0.5 * 2 / 3  # LinearLR reaches 1 after end - 1 steps.
    for group in optim_wrapper.optimizer.param_groups:
        assert group["initial_lr"] == group["lr_scale"] * LR
        assert group["lr"] == pytest.approx(halfway * group["lr_scale"] * LR)
    other = detector()
    other.load_state_dict(model.state_dict())
    resumed = build(other, decay_rate=0.7)
    resumed.load_state_dict(copy.deepcopy(optim_wrapper.state_dict()))
    assert settings(resumed) == settings(optim_wrapper)
    for one, two in ((optim_wrapper, model), (resumed, other)):
        one.update_params(sum(p.square().sum() for p in two.parameters()))
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["atto", "nano", "tiny", "small"])
def test_layer_ids_as_in_mmpretrain(arch):
    theirs = import_mmpretrain().ConvNeXt(arch)
    for name, _ in ConvNeXt(arch).named_parameters():
        if not name.startswith("norm"):
            layer, _ = locate(name, theirs.depths, "layer_wise")
            depth, total = theirs.get_layer_depth(name)
            assert (layer, num_layers(theirs.depths) + 2) == (depth, total), name


def test_groups_are_in_the_order_of_the_layers():
    names = [
        group["group_name"] for group in build(detector(), decay_rate=0.7).optimizer.param_groups
    ]
    assert names == [f"layer_{i}_{kind}" for i in range(8) for kind in ("decay", "no_decay")]


def cells(table: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[2:]]


def test_table(logged):
    model = detector()
    build(model, decay_rate=0.7, custom_keys={"head": dict(lr_mult=10.0)})
    (table,) = logged
    assert "layer_wise, 0.7: backbone (3, 3, 9, 3) in 6 layers" in table.splitlines()[0]
    rows = cells(table)
    assert [(layer, what, lr, scale) for layer, what, _, lr, scale, _ in rows] == [
        ("0", "stem", "1.65e-05", "0.0824"),
        ("1", "stage 1", "2.35e-05", "0.1176"),
        ("2", "downsample 2, stage 2", "3.36e-05", "0.1681"),
        ("3", "downsample 3, stage 3 blocks 0-2", "4.8e-05", "0.2401"),
        ("4", "stage 3 blocks 3-5", "6.86e-05", "0.3430"),
        ("5", "stage 3 blocks 6-8", "9.8e-05", "0.4900"),
        ("6", "downsample 4, stage 4", "0.00014", "0.7000"),
        ("7", "norms, neck", "0.0002", "1.0000"),
        ("7", "head", "0.002", "10.0000"),
    ]
    # The stem is a 4x4 convolution from 3 to 4 channels (192 + 4) and a layer norm (4 + 4).
    assert rows[0][2] == "204" and rows[0][5] == "0.05 (192), 0 (12)"
    count = sum(int(row[2].replace(",", "")) for row in rows)
    assert count == sum(p.numel() for p in model.parameters())


def test_table_stage_wise(logged):
    build(detector(S), decay_rate=0.9, decay_type="stage_wise")
    assert [(row[0], row[1], row[4]) for row in cells(logged[-1])] == [
        ("0", "stem, downsample 2, downsample 3, downsample 4", "0.2542"),
        ("1", "stage 1", "0.2824"),
        ("2", "stage 2", "0.3138"),
        ("3", "stage 3", "0.3487"),
        ("4", "stage 4", "0.3874"),
        ("13", "norms, neck, head", "1.0000"),
    ]


def test_table_stays_short(logged):
    build(Wrapper(student=detector(T), teacher=detector(S)), decay_rate=0.7)
    assert "student.backbone (3, 3, 9, 3) in 6 layers" in logged[-1]
    assert "student.backbone stem, teacher.backbone stage 3 blocks 9-11" in logged[-1]
    assert len(logged[-1].splitlines()) == 16


@pytest.mark.parametrize("rank, tables", [(0, 1), (1, 0)])
def test_table_is_logged_by_the_main_process_only(logged, rank, tables):
    torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        build(detector(), decay_rate=0.7)
    finally:
        torch.distributed.destroy_process_group()
    assert len(logged) == tables


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_found_by_name_in_the_scopes_of_both_tasks(scope):
    script = f"""
import sys
sys.modules["mmpretrain"] = None  # mmdet imports it where it is installed, and it may not import
import backbones.openmmlab.training.layer_decay
from backbones.openmmlab import mmcv_ops
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
mmcv_ops.install()
import {scope}.engine
model = backbones.ConvNeXt("atto")
cfg = dict(
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.5),
    optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
)
with DefaultScope.overwrite_default_scope("{scope}"):
    print("lr of the stem", build_optim_wrapper(model, cfg).param_groups[0]["lr"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"lr of the stem {0.5**7}" in done.stdout, done.stderr
