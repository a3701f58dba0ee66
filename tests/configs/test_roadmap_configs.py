"""Detectors, segmentors and classifiers on every step of the roadmap."""

import re

import pytest
import torch
from mmengine.config import Config
from support.config_comparison import PROTOCOLS, accepted_misspellings, differences, plain
from support.running import REPOSITORY

from backbones import InputError, ModernizedResNet
from backbones.openmmlab.config import load_config
from backbones.openmmlab.doctor.complexity import build_on_meta, count
from backbones.roadmap import REGIMES, STEPS, design

FOLDER = REPOSITORY / "configs"
DENSE = {"detection/mask_rcnn_roadmap": "COCO", "segmentation/upernet_roadmap": "ADE20K at 512"}
CLASSIFICATION = [
    *(f"classification/roadmap_{regime}" for regime in REGIMES),
    *(f"classification/roadmap_{regime}_torchvision" for regime in REGIMES),
    "classification/roadmap_demo",
]

# Maps' channels by step, first regime.
BOTTLENECK, WIDE, INVERTED = (
    [256, 512, 1024, 2048],
    [384, 768, 1536, 3072],
    [96, 192, 384, 768],
)
WIDTHS = {step: INVERTED for step in STEPS} | {
    **dict.fromkeys(
        ["resnet", "training_recipe", "stage_ratio", "patchify", "depthwise"], BOTTLENECK
    ),
    "wider": WIDE,
}


def read(name: str, **overrides) -> Config:
    return load_config(FOLDER / f"{name}.py", overrides)


def test_the_family_is_whole():
    found = {str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/*roadmap*.py")}
    assert found == {*DENSE, *CLASSIFICATION}


@pytest.mark.parametrize("name", [*DENSE, *CLASSIFICATION])
def test_is_short_and_opens_with_its_claim(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 25
    assert re.fullmatch(r'""".* (Not published|Published: \d+\.\d\d top-1)\."""', lines[0])
    if name in DENSE:
        assert DENSE[name] in lines[0]


def test_claims_of_classifiers_are_the_tables():
    for regime in REGIMES:
        for name, step in [("", "separate_downsampling"), ("_torchvision", "resnet")]:
            path = FOLDER / f"classification/roadmap_{regime}{name}.py"
            config = load_config(path)
            assert (config.model.network.regime, config.model.network.step) == (regime, step)
            top1 = getattr(STEPS[step], regime).top1
            assert f"Published: {top1:.2f} top-1." in path.read_text().splitlines()[0]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("base", DENSE)
def test_a_step_is_one_key(base, step):
    """On the command line: neck and heads follow; nothing else changes."""
    config = read(base, **{"model.backbone.step": step})
    assert set(differences(plain(config.to_dict()), plain(read(base).to_dict()))) <= {
        "model.backbone.step",
        *(f"model.neck.in_channels.{i}" for i in range(4)),
        *(f"model.decode_head.in_channels.{i}" for i in range(4)),
        "model.auxiliary_head.in_channels",
    }
    assert config.model.backbone.step == step
    part = config.model.get("neck") or config.model.decode_head
    assert part.in_channels == WIDTHS[step]
    if "auxiliary_head" in config.model:
        assert config.model.auxiliary_head.in_channels == WIDTHS[step][2]


@pytest.mark.parametrize("base", DENSE)
@pytest.mark.parametrize("step", ["resnet", "wider", "layer_norm", "separate_downsampling"])
def test_builds_and_counts(base, step):
    """Everything but the backbone is the ConvNeXt-T recipe's, width by width."""
    config = read(base, **{"model.backbone.step": step})
    found = count(config)
    with torch.device("meta"):
        backbone = ModernizedResNet(step)
    assert found.params["backbone"] == sum(p.numel() for p in backbone.parameters())
    if step == "separate_downsampling":
        total = {"detection": (48_095_376, 261.9), "segmentation": (60_242_636, 938.5)}
        params, gmacs = total[base.partition("/")[0]]
        assert (found.params["total"], round(found.macs["total"] / 1e9, 1)) == (params, gmacs)


def test_the_other_regime_and_any_choice_are_keys_too():
    base = "segmentation/upernet_roadmap"
    config = read(base, **{"model.backbone.regime": "resnet200", "model.backbone.step": "patchify"})
    assert config.model.decode_head.in_channels == [336, 672, 1344, 2688]
    config = read(base, **{"model.backbone.design.kernel_size": 9, "model.backbone.step": "gelu"})
    assert build_on_meta(config).backbone.design == design("gelu", kernel_size=9)
    config = read(
        base, **{"model.backbone.out_indices": [1, 2, 3], "model.decode_head.in_index": [0, 2]}
    )
    assert config.model.decode_head.in_channels == [192, 768]


def test_widths_that_are_set_themselves_stay():
    base = "detection/mask_rcnn_roadmap"
    overrides = {"model.backbone.step": "wider", "model.neck.in_channels": [1, 2, 3, 4]}
    assert read(base, **overrides).model.neck.in_channels == [1, 2, 3, 4]


def test_widths_follow_any_of_our_backbones():
    config = read("segmentation/upernet_convnext_t", **{"model.backbone.arch": "large"})
    assert config.model.decode_head.in_channels == [192, 384, 768, 1536]
    assert config.model.auxiliary_head.in_channels == 768


def test_a_wrong_step_is_named():
    with pytest.raises(InputError) as caught:
        read("detection/mask_rcnn_roadmap", **{"model.backbone.step": "gelou"})
    assert "gelou" in str(caught.value) and "resnet" in str(caught.value)
    with pytest.raises(InputError) as caught:
        read("detection/mask_rcnn_roadmap", **{"model.backbone.design.kernel_sise": 5})
    assert (caught.value.code, caught.value.where) == (
        "unknown-key",
        "model.backbone.design.kernel_sise",
    )
    assert "kernel_size" in str(caught.value)


@pytest.mark.parametrize("base", DENSE)
def test_recipe_is_convnext_ts(base):
    """All but the backbone's class and its weights."""
    theirs = "mask_rcnn_convnext_t" if "mask_rcnn" in base else "upernet_convnext_t"
    theirs = plain(read(f"{base.partition('/')[0]}/{theirs}").to_dict())
    paths = set(differences(plain(read(base).to_dict()), theirs))
    assert paths == {
        "model.backbone.type",
        "model.backbone.arch",
        "model.backbone.regime",
        "model.backbone.step",
        "model.backbone.norm_eval",
        "model.backbone.layer_scale_init_value",
        "model.backbone.init_cfg.checkpoint",
    }


@pytest.mark.parametrize("regime", REGIMES)
def test_classifiers_recipe_is_convnexts_without_an_average(regime):
    size = dict(resnet50="t", resnet200="b")[regime]
    theirs = plain(read(f"classification/convnext_{size}_in1k").to_dict())
    ours = read(f"classification/roadmap_{regime}")
    assert set(differences(plain(ours.to_dict()), theirs)) == {
        "custom_hooks",
        "model.network.type",
        "model.network.arch",
        "model.network.regime",
        "model.network.step",
    }
    assert [hook.type for hook in ours.custom_hooks] == ["InterruptHook"]


def test_torchvisions_recipe():
    config = read("classification/roadmap_resnet50_torchvision")
    assert config.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    assert "paramwise_cfg" not in config.optim_wrapper
    assert config.train_cfg.max_epochs == 90
    assert config.param_scheduler[0].milestones == [30, 60]
    assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 256
    model = build_on_meta(config)
    assert model.mixup is None and config.model.label_smoothing == 0


@pytest.mark.parametrize("name", [*DENSE, "classification/roadmap_resnet50"])
def test_each_key_is_refused_when_misspelled(name):
    assert not accepted_misspellings(read(name), PROTOCOLS)


def test_layer_decay_knows_every_step():
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    for step in ("resnet", "fewer_norms", "separate_downsampling"):
        network = ModernizedResNet(step, design=dict(depths=(1, 1, 4, 1), width=8))
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type="LayerDecayConstructor",
                optim_wrapper_cfg=dict(
                    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05)
                ),
                paramwise_cfg=dict(decay_rate=0.5),
            )
        )
        groups = constructor(network).optimizer.param_groups
        rates = {n: g["lr"] for g in groups for n in g["param_names"]}
        decays = {n: g["weight_decay"] for g in groups for n in g["param_names"]}
        assert set(rates) == {n for n, _ in network.named_parameters()}
        assert rates["downsample_layers.0.0.weight"] == 0.5**7
        assert rates["stages.2.3.conv1.weight"] == 0.5**3  # block 3 of stage 3: layer 4 of 6
        assert rates["stages.3.0.conv3.weight"] == 0.5
        assert decays["stages.3.0.conv3.weight"] == 0.05
        assert decays["stages.0.0.norm1.weight" if step == "resnet" else "norm0.weight"] == 0
