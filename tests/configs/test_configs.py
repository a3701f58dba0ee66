"""Every config: its size, its recipe, its agreement with OpenMMLab's own, its spelling."""

import ast
import json
import math
import pickle
import re
import socket
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from support.config_comparison import (
    ALLOWED,
    PROTOCOLS,
    accepted_misspellings,
    differences,
    plain,
)
from support.running import REPOSITORY

from backbones import ARCHITECTURES
from backbones.openmmlab.config import load_config, use_tta, validate
from backbones.openmmlab.config.names import Listed, listed_configs
from backbones.openmmlab.doctor.complexity import Complexity, build_on_meta, count
from backbones.weights import find

FOLDER = REPOSITORY / "configs"
# Those of classification are in test_classification.py.
CONFIGS = sorted(
    str(p.relative_to(FOLDER).with_suffix(""))
    for task in ("detection", "segmentation")
    for p in (FOLDER / task).glob("*.py")
    # The others are in test_roadmap_configs.py, test_comparison_configs.py and test_other_heads.py.
    if "convnext" in p.name and p.name.startswith(("mask_rcnn", "cascade", "upernet", "linear"))
)

IMAGENET = (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)

# What the papers print for an experiment: box AP and mask AP, or mIoU at one scale and at many.
PUBLISHED = {
    # ConvNeXt paper, Tables 3, 4 and 7.
    "detection/mask_rcnn_convnext_t": (46.2, 41.7),
    "detection/cascade_convnext_t": (50.4, 43.7),
    "detection/cascade_convnext_s": (51.9, 45.0),
    "detection/cascade_convnext_b": (52.7, 45.6),
    "detection/cascade_convnext_b_22k": (54.0, 46.9),
    "detection/cascade_convnext_l_22k": (54.8, 47.6),
    "detection/cascade_convnext_xl_22k": (55.2, 47.7),
    "segmentation/upernet_convnext_t": (46.0, 46.7),
    "segmentation/upernet_convnext_s": (48.7, 49.6),
    "segmentation/upernet_convnext_b": (49.1, 49.9),
    "segmentation/upernet_convnext_b_22k": (52.6, 53.1),
    "segmentation/upernet_convnext_l_22k": (53.2, 53.7),
    "segmentation/upernet_convnext_xl_22k": (53.6, 54.0),
    # ConvNeXt V2 paper, COCO and ADE20K with FCMAE.
    "detection/mask_rcnn_convnextv2_b": (52.9, 46.6),
    "detection/mask_rcnn_convnextv2_l": (54.4, 47.7),
    "detection/mask_rcnn_convnextv2_h": (55.7, 48.9),
    "segmentation/upernet_convnextv2_b": (None, 52.1),
    "segmentation/upernet_convnextv2_l": (None, 53.7),
    "segmentation/upernet_convnextv2_h": (None, 55.0),
    "segmentation/upernet_convnextv2_h_22k": (None, 57.0),
    # DINOv3's model card.
    "segmentation/linear_dinov3_convnext_t": (42.7, None),
    "segmentation/linear_dinov3_convnext_s": (44.8, None),
    "segmentation/linear_dinov3_convnext_b": (46.3, None),
    "segmentation/linear_dinov3_convnext_l": (47.8, None),
}


class Size(NamedTuple):
    """Exact counts, and the multiply-adds as a paper prints them."""

    params: int
    gmacs: float  # exact to a tenth
    gflops: int | None = None


# (method, arch, V2) -> size; at 640 where the method says so. What no paper prints was worked out
# from the backbone's own count and T's heads with their four input widths exchanged.
SIZES = {
    ("mask_rcnn", "tiny", False): Size(48_095_376, 261.9, 262),
    ("mask_rcnn", "atto", True): Size(23_446_824, 180.4),
    ("mask_rcnn", "femto", True): Size(24_938_496, 185.4),
    ("mask_rcnn", "pico", True): Size(28_705_200, 197.9),
    ("mask_rcnn", "nano", True): Size(35_196_384, 220.4),
    ("mask_rcnn", "tiny", True): Size(48_141_744, 261.9, 262),
    ("mask_rcnn", "base", True): Size(108_091_376, 485.3, 486),
    ("mask_rcnn", "large", True): Size(217_065_072, 875.2, 875),
    ("mask_rcnn", "huge", True): Size(678_734_512, 2524.1, 2525),
    ("cascade", "tiny", False): Size(85_930_578, 740.2, 741),
    ("cascade", "small", False): Size(107_565_138, 826.4, 827),
    ("cascade", "base", False): Size(145_800_242, 963.6, 964),
    ("cascade", "large", False): Size(254_710_770, 1353.4, 1354),
    ("cascade", "xlarge", False): Size(406_875_058, 1897.4, 1898),
    ("cascade", "atto", True): Size(61_282_026, 658.7),
    ("cascade", "femto", True): Size(62_773_698, 663.7),
    ("cascade", "pico", True): Size(66_540_402, 676.1),
    ("cascade", "nano", True): Size(73_031_586, 698.6),
    ("cascade", "tiny", True): Size(85_976_946, 740.2, 741),
    ("cascade", "small", True): Size(107_659_890, 826.4, 827),
    ("cascade", "base", True): Size(145_926_578, 963.6, 964),
    ("cascade", "large", True): Size(254_900_274, 1353.4, 1354),
    ("cascade", "xlarge", True): Size(407_127_730, 1897.4, 1898),
    ("cascade", "huge", True): Size(716_569_714, 3002.4),
    ("upernet", "tiny", False): Size(60_242_636, 938.5, 939),
    ("upernet", "small", False): Size(81_877_196, 1026.8, 1027),
    ("upernet", "base", False): Size(122_102_956, 1169.3, 1170),
    ("upernet", "atto", True): Size(32_110_436, 851.4),
    ("upernet", "femto", True): Size(34_099_772, 857.0),
    ("upernet", "pico", True): Size(38_861_804, 870.9),
    ("upernet", "nano", True): Size(46_348_316, 894.9),
    ("upernet", "tiny", True): Size(60_289_004, 938.5, 939),
    ("upernet", "small", True): Size(81_971_948, 1026.8, 1027),
    ("upernet", "base", True): Size(122_229_292, 1169.3, 1170),
    ("upernet", "large", True): Size(235_184_300, 1572.7, 1573),
    ("upernet", "huge", True): Size(706_807_020, 3271.7, 3272),
    ("upernet_640", "base", False): Size(122_102_956, 1827.1, 1828),
    ("upernet_640", "large", False): Size(234_994_796, 2457.4, 2458),
    ("upernet_640", "xlarge", False): Size(391_140_396, 3334.3, 3335),
    ("upernet_640", "base", True): Size(122_229_292, 1827.1, 1828),
    ("upernet_640", "large", True): Size(235_184_300, 2457.4, 2458),
    ("upernet_640", "xlarge", True): Size(391_393_068, 3334.3, 3335),
    ("upernet_640", "huge", True): Size(706_807_020, 5112.0, 5113),
    ("linear", "tiny", False): Size(27_937_014, 93.2),
    ("linear", "small", False): Size(49_571_574, 181.6),
    ("linear", "base", False): Size(87_722_262, 321.0),
    ("linear", "large", False): Size(196_463_958, 718.3),
}


class Recipe(NamedTuple):
    arch: str
    lr: float
    decay_rate: float | None  # None: no layer decay, the backbone is frozen
    drop_path_rate: float
    checkpoint: str  # its name in the zoo
    crop: int = 512
    length: int | None = None  # epochs or iterations; None: 36 and 160,000
    batch_size: int = 2  # of each of 8 processes


V2_SIZES = dict(
    a="atto", f="femto", p="pico", n="nano", t="tiny", b="base", l="large", h="huge"
)  # fmt: skip
DINOV3_SIZES = dict(t="tiny", s="small", b="base", l="large")
OFFICIAL = json.loads((Path(__file__).parent / "official_recipes.json").read_text())["recipes"]
RECIPES = {
    name: Recipe(
        official["arch"],
        official["lr"],
        official["decay_rate"],
        official["drop_path_rate"],
        official["pretrained"],
        official.get("crop", 512),
    )
    for name, official in OFFICIAL.items()
}
V1 = tuple(RECIPES)
QUICK = {
    f"{name}_{schedule}": RECIPES[name]._replace(length=length)
    for name, schedule, length in [
        ("detection/mask_rcnn_convnext_t", "1x", 12),
        ("detection/cascade_convnext_t", "1x", 12),
        ("segmentation/upernet_convnext_t", "80k", 80_000),
    ]
}
V2 = {
    # The V2 paper's sweeps: lr 1e-4, layer decay 0.9 or 0.95, drop path 0.2 to 0.5.
    f"detection/mask_rcnn_convnextv2_{size}": Recipe(
        arch,
        1e-4,
        0.95,
        dict(t=0.3, b=0.4, l=0.5, h=0.5).get(size, 0.2),
        f"convnextv2_{arch}_1k_224_fcmae",
        batch_size=4,
    )
    for size, arch in V2_SIZES.items()
} | {
    # V1's recipe for the same size; below T and above L, that of T and L with another drop path.
    f"detection/cascade_convnextv2_{size}": Recipe(
        arch,
        1e-4 if size in "lh" else 2e-4,
        0.8 if size == "b" else 0.7,
        dict(t=0.4, b=0.7, l=0.7, h=0.8).get(size, 0.2),
        f"convnextv2_{arch}_1k_224_fcmae",
    )
    for size, arch in V2_SIZES.items()
} | {
    # The V2 paper's sweeps: lr 1e-4 to 3e-4, decay 0.8 or 0.9, drop path 0.1 to 0.4.
    f"segmentation/upernet_convnextv2_{size}": Recipe(
        arch,
        1e-4,
        0.9,
        dict(t=0.2, b=0.3, l=0.4, h=0.4).get(size, 0.1),
        f"convnextv2_{arch}_1k_224_ema",
    )
    for size, arch in V2_SIZES.items()
} | {
    "segmentation/upernet_convnextv2_h_22k": Recipe(
        "huge", 1e-4, 0.9, 0.4, "convnextv2_huge_22k_512_ema", 640
    )
}  # fmt: skip
# Other weights in V1's recipe for the same size: ImageNet-22k's for B and L.
TRANSFERS = {
    f"{folder}/{method}_{pretraining}_convnext_{size}": RECIPES[
        f"{folder}/{method}_convnext_{size}{'' if size in 'ts' else '_22k'}"
    ]._replace(checkpoint=checkpoint)
    for folder, method in [("detection", "cascade"), ("segmentation", "upernet")]
    for pretraining, size, checkpoint in [
        *(("dinov3", s, f"convnext_{a}.dinov3_lvd1689m") for s, a in DINOV3_SIZES.items()),
        ("clip", "b", "convnext_base.clip_laion2b_augreg"),
        ("clip", "l", "convnext_large_mlp.clip_laion2b_ft_soup_320"),
    ]
}
# DINOv3's config-ade20k-linear-training.yaml.
LINEAR = {
    f"segmentation/linear_dinov3_convnext_{size}": Recipe(
        arch, 1e-3, None, 0.0, f"convnext_{arch}.dinov3_lvd1689m", length=40_000
    )
    for size, arch in DINOV3_SIZES.items()
}
# V1's recipe with another norm in its heads.
NORMS = {
    f"{model}_convnext_t_gn": RECIPES[f"{model}_convnext_t"]
    for model in ("segmentation/upernet", "detection/cascade")
}
RECIPES |= NORMS | QUICK | V2 | TRANSFERS | LINEAR
COUNTED = (*V1, *V2, *LINEAR)  # the rest are models of V1 in another schedule or with other weights

# Ours -> the published configs that OpenMMLab's packages carry.
MMDET = "mmdet/.mim/configs/convnext/"
MMSEG = "mmseg/.mim/configs/convnext/"
COUNTERPARTS = {
    "detection/cascade_convnext_t": MMDET
    + "cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
    "detection/cascade_convnext_s": MMDET
    + "cascade-mask-rcnn_convnext-s-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
    "detection/mask_rcnn_convnext_t": MMDET
    + "mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py",
} | {
    f"segmentation/upernet_convnext_{ours}": MMSEG
    + f"convnext-{theirs}_upernet_8xb2-amp-160k_ade20k-{crop}x{crop}.py"
    for ours, theirs, crop in [
        ("t", "tiny", 512),
        ("s", "small", 512),
        ("b", "base", 512),
        ("b_22k", "base", 640),
        ("l_22k", "large", 640),
        ("xl_22k", "xlarge", 640),
    ]
}


def task(name: str) -> str:
    return name.partition("/")[0]


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.py"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a config test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@cache
def read(name: str) -> Config:
    """The config, read once; not to be changed."""
    return load_config(path_of(name))


@cache
def counted(name: str) -> Complexity:
    return count(read(name))


@cache
def all_listed() -> list[Listed]:
    return listed_configs()


def listed(name: str) -> Listed:
    """Return what `convnext configs` lists for a config."""
    (found,) = (each for each in all_listed() if each.name == Path(name).name)
    return found


def size_of(name: str, use_grn: bool) -> Size:
    method = name.partition("/")[2].partition("_convnext")[0].partition("_dinov3")[0]
    method = method.removesuffix("_clip")
    wide = RECIPES[name].crop == 640
    return SIZES[f"{method}_640" if wide else method, RECIPES[name].arch, use_grn]


def test_every_published_experiment_is_here():
    assert set(PUBLISHED) <= set(RECIPES)
    assert set(RECIPES) == {name for name in CONFIGS if "_demo" not in name}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in COUNTED])
def test_builds(name):
    """All others are built to be counted."""
    config = read(name)
    model = build_on_meta(config)
    assert list(model.backbone.dims) == list(ARCHITECTURES[config.model.backbone.arch]["dims"])
    assert sum(p.numel() for p in model.parameters()) == listed(name).parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_are_as_wide_as_the_backbone(name):
    config = read(name)
    dims = list(ARCHITECTURES[config.model.backbone.arch]["dims"])
    if task(name) == "detection":
        assert config.model.neck.in_channels == dims
    elif "linear" in name:
        assert config.model.decode_head.in_channels == dims[-1]
    else:
        assert config.model.decode_head.in_channels == dims
        assert config.model.auxiliary_head.in_channels == dims[config.model.auxiliary_head.in_index]


@pytest.mark.parametrize("name", CONFIGS)
def test_is_short_and_opens_with_its_claim(name):
    text = path_of(name).read_text()
    assert len(text.splitlines()) <= 25
    claim = text.splitlines()[0]
    assert claim == f'"""{ast.get_docstring(ast.parse(text))}"""'
    assert claim.endswith(f'. {published_claim(name)}"""')
    for part in claimed_parts(name):
        assert part in claim


def published_claim(name: str) -> str:
    if name not in PUBLISHED:
        return "Not published."
    first, second = PUBLISHED[name]
    if task(name) == "detection":
        return f"Published: {first} box AP, {second} mask AP."
    if second is None:
        return f"Published: {first} mIoU."
    if first is None:
        return f"Published: {second} mIoU multi-scale."
    return f"Published: {first} mIoU, {second} multi-scale."


def claimed_parts(name: str) -> list[str]:
    """Method, network and length as the claim has to say them."""
    if "_demo" in name:
        return []
    recipe, config = RECIPES[name], read(name)
    kind = next((k for k in ("DINOv3 ", "CLIP ") if k.lower().strip() in name), "")
    size = dict(small="S", xlarge="XL").get(recipe.arch, recipe.arch[0].upper())
    network = f"{kind}ConvNeXt{' V2' if config.model.backbone.get('use_grn') else ''}-{size}"
    if task(name) == "detection":
        return [network, "COCO", f" {config.train_cfg.max_epochs} epochs"]
    length = config.train_cfg.max_iters // 1000
    return [network, f"ADE20K at {recipe.crop}", f" {length}k steps"]


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    config = read(name)
    assert_size(counted(name), size_of(name, config.model.backbone.get("use_grn", False)))
    assert counted(name).params["total"] == listed(name).parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_listed_weights_are_those_of_the_config(name):
    start = read(name).model.backbone.get("init_cfg") or {}
    assert listed(name).weights == start.get("checkpoint")


@pytest.mark.parametrize("name", V1)
def test_grn_adds_its_parameters_and_no_multiply_adds(name):
    config = load_config(path_of(name))
    config.model.backbone.update(use_grn=True, layer_scale_init_value=None)
    found = count(config)
    assert_size(found, size_of(name, use_grn=True))
    assert found.macs == counted(name).macs


def assert_size(found: Complexity, expected: Size) -> None:
    assert found.params["total"] == expected.params
    assert round(found.macs["total"] / 1e9, 1) == expected.gmacs
    if expected.gflops:
        assert found.macs["total"] / 1e9 == pytest.approx(expected.gflops, rel=0.0015)


@pytest.mark.parametrize("name", [*QUICK, *TRANSFERS])
def test_model_is_that_of_the_config_it_derives_from(name):
    base = path_of(name).parent / ast.literal_eval(
        re.search("^_base_ = (.*)$", path_of(name).read_text(), re.M)[1]
    )
    paths = set(differences(plain(read(name).model), plain(load_config(base).model)))
    assert {re.sub(r"\.\d$", "", path) for path in paths} == {
        *(["backbone.init_cfg.checkpoint"] if name in TRANSFERS else []),
        *(["data_preprocessor.mean", "data_preprocessor.std"] if "_clip_" in name else []),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    expected = RECIPES[name]
    config = read(name)
    backbone = config.model.backbone
    assert backbone.arch == expected.arch
    assert backbone.get("drop_path_rate", 0.0) == expected.drop_path_rate
    if backbone.get("use_grn"):
        assert not backbone.get("layer_scale_init_value")
    else:
        assert backbone.layer_scale_init_value == 1.0
    weights = find(expected.checkpoint)
    assert backbone.init_cfg == dict(type="Pretrained", checkpoint=weights.source)

    wrapper = config.optim_wrapper
    frozen = expected.decay_rate is None
    decay = 1e-3 if frozen else 0.05
    assert wrapper.optimizer == dict(
        type="AdamW", lr=expected.lr, betas=(0.9, 0.999), weight_decay=decay
    )
    if frozen:
        assert wrapper.type == "OptimWrapper"
        assert "constructor" not in wrapper and "paramwise_cfg" not in wrapper
    else:
        assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
        assert wrapper.constructor == "LayerDecayConstructor"
        decay_type = "layer_wise" if task(name) == "detection" else "stage_wise"
        assert wrapper.paramwise_cfg == dict(decay_rate=expected.decay_rate, decay_type=decay_type)

    assert config.train_dataloader.batch_size == expected.batch_size
    warm_up, decay = config.param_scheduler
    if task(name) == "detection":
        epochs = expected.length or 36
        assert config.train_cfg.max_epochs == decay.end == epochs
        steps = 1000 if "mask_rcnn_convnextv2" in name else 500
        assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, steps, False)
        milestones = {36: [27, 33], 12: [8, 11]}[epochs]
        assert (decay.milestones, decay.gamma, decay.by_epoch) == (milestones, 0.1, True)
        assert config.auto_scale_lr.base_batch_size == 8 * expected.batch_size
        return
    steps = expected.length or 160_000
    assert config.train_cfg.max_iters == decay.end == steps
    assert config.default_hooks.checkpoint.interval == config.train_cfg.val_interval <= steps // 8
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1e-6, 1500, False)
    assert (decay.eta_min, decay.by_epoch) == (0.0, False)
    if frozen:
        assert (decay.type, decay.T_max, decay.begin) == ("CosineAnnealingLR", steps, 0)
    else:
        assert (decay.type, decay.power, decay.begin) == ("PolyLR", 1.0, 0)
    crop, test_cfg = expected.crop, config.model.test_cfg
    stride = {512: 341, 640: 426}[crop]
    assert test_cfg == dict(mode="slide", crop_size=(crop, crop), stride=(stride, stride))
    assert config.model.data_preprocessor.size == (crop, crop)
    train = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert train["RandomCrop"].crop_size == (crop, crop)
    assert train["RandomResize"].scale == (4 * crop, crop)
    for loader in (config.val_dataloader, config.test_dataloader):
        steps = {step.type: step for step in loader.dataset.pipeline}
        assert steps["Resize"].scale == (4 * crop, crop)


@pytest.mark.parametrize("name", RECIPES)
def test_checkpoint_is_in_the_zoo_and_fits_the_backbone(name):
    model = read(name).model
    weights = find(model.backbone.init_cfg.checkpoint)
    assert weights.source == model.backbone.init_cfg.checkpoint
    assert model.backbone.arch == weights.arch
    assert model.backbone.get("use_grn", False) == weights.use_grn
    published = timm.models.get_pretrained_cfg(weights.timm or weights.name)
    mean, std = (published.mean, published.std) if published else IMAGENET
    normalise = model.data_preprocessor
    assert [channel / 255 for channel in normalise.mean] == pytest.approx(mean, abs=1e-5)
    assert [channel / 255 for channel in normalise.std] == pytest.approx(std, abs=1e-5)


@pytest.mark.parametrize("size", V2_SIZES)
def test_v2_mask_rcnn_jitters_scales_and_softens_nms(size):
    config = read(f"detection/mask_rcnn_convnextv2_{size}")
    assert config.model.test_cfg.rcnn.nms == dict(type="soft_nms", iou_threshold=0.5)
    assert config.model.test_cfg.rpn.nms.type == "nms"
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert list(steps) == [
        "LoadImage",
        "LoadAnnotations",
        "RandomResize",
        "RandomCrop",
        "FilterAnnotations",
        "RandomFlip",
        "PackDetInputs",
    ]
    assert (steps["RandomResize"].scale, steps["RandomResize"].ratio_range) == (
        (1024, 1024),
        (0.1, 2.0),
    )
    assert steps["RandomCrop"].crop_size == (1024, 1024)
    assert config.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


def test_linear_head_is_a_linear_function_of_frozen_features():
    config = load_config(path_of("segmentation/linear_dinov3_convnext_t"))
    narrow = dict(arch=dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20)), init_cfg=None)
    config.model.backbone.update(narrow)
    config.model.decode_head.update(in_channels=20, num_classes=3, norm_cfg=dict(type="BN"))
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = ("conv_seg.weight", "conv_seg.bias", "norm.weight", "norm.bias")
    assert trained == {f"decode_head.{name}" for name in head}
    leaves = [module for module in model.backbone.modules() if not list(module.children())]
    assert leaves and not any(module.training for module in leaves)

    model.decode_head.norm.running_mean.normal_()
    model.decode_head.norm.running_var.uniform_(0.5, 2.0)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    model.eval()
    (features,) = model.backbone(torch.randn(2, 3, 64, 96))
    assert features.shape == (2, 20, 2, 3)
    norm, conv = model.decode_head.norm, model.decode_head.conv_seg
    x = (features - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[
        :, None, None
    ]
    logits = torch.einsum("nchw,kc->nkhw", x, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
    torch.testing.assert_close(model.decode_head((features,)), logits, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.5


def test_linear_schedule_is_dinov3s():
    """Their annealing runs over all 40,000 steps; the warm-up multiplies its beginning."""
    config = read("segmentation/linear_dinov3_convnext_t")
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.AdamW([parameter], lr=config.optim_wrapper.optimizer.lr))
    schedulers = [
        PARAM_SCHEDULERS.build({**step, "optimizer": wrapper}) for step in config.param_scheduler
    ]
    rates = []
    for _ in range(40_000):
        rates.append(wrapper.get_lr()["lr"][0])
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-9)
    for step in (1_500, 10_000, 20_000, 39_000):
        theirs = 1e-3 * (1 + math.cos(math.pi * (step + 1) / 40_000)) / 2
        assert rates[step] == pytest.approx(theirs, rel=1e-3, abs=1e-7)


def counterpart(name: str) -> Config:
    library, _, path = COUNTERPARTS[name].partition("/")
    folder = Path(find_spec(library).submodule_search_locations[0])
    return Config.fromfile(folder / path, import_custom_modules=False)


def differences_from_counterpart(name: str) -> set[str]:
    ours = Config.fromfile(path_of(name), import_custom_modules=False)
    return set(differences(plain(ours.to_dict()), plain(counterpart(name).to_dict())))


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_equals_openmmlabs_own_config(name):
    assert differences_from_counterpart(name) <= set(ALLOWED)


def test_no_difference_is_allowed_for_nothing():
    assert set(ALLOWED) == set().union(*map(differences_from_counterpart, COUNTERPARTS))


@pytest.mark.parametrize("name", [name for name in COUNTERPARTS if task(name) == "segmentation"])
def test_tta_protocols(name):
    config = load_config(path_of(name))
    crop = RECIPES[name].crop
    theirs = plain(counterpart(name).tta_pipeline)
    assert set(differences(plain(config.tta.mmseg.pipeline), theirs)) == {
        "0.type",
        "1.transforms.2.0.reduce_zero_label",  # they leave it to the data set, which says the same
    }
    assert "test_cfg" not in config.tta.mmseg  # sliding windows, as without test-time augmentation

    # mmseg 0.x: img_ratios of img_scale, with and without the flip, on whole images.
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    resizes, flips, *_ = config.tta.paper.pipeline[1].transforms
    sizes = [(int(4 * crop * ratio), int(crop * ratio)) for ratio in ratios]
    assert [step.scale for step in resizes] == sizes
    assert all(step.keep_ratio for step in resizes)
    assert [step.prob for step in flips] == [0.0, 1.0]
    assert config.tta.paper.test_cfg == dict(mode="whole")

    # What differs between the protocols is the size of the image, nothing else.
    paths = differences(plain(config.tta.paper.pipeline), plain(config.tta.mmseg.pipeline))
    assert {path.split(".")[-1] for path in paths} == {"scale", "scale_factor"}


@pytest.mark.parametrize("protocol", ["paper", "mmseg"])
def test_tta_model_builds(protocol):
    config = load_config(path_of("segmentation/upernet_convnext_t"))
    use_tta(config, protocol)
    model = build_on_meta(config)
    assert model.module.test_cfg.mode == ("whole" if protocol == "paper" else "slide")


@pytest.mark.parametrize(
    "name",
    [
        "detection/cascade_convnext_b_22k",
        "detection/mask_rcnn_convnextv2_b",
        "segmentation/upernet_convnext_xl_22k",
        "segmentation/linear_dinov3_convnext_t",
        "classification/convnext_t_in1k",
        "classification/convnext_b_in22k_ft_in1k_384",
    ],
)
def test_each_key_is_refused_when_misspelled(name):
    config = load_config(path_of(name))
    assert not accepted_misspellings(config, PROTOCOLS)
    validate(config)


def test_text_is_mmengines_and_laid_out_once(monkeypatch):
    """After a change deep in it too, in a copy too."""
    from yapf.yapflib import yapf_api

    path = FOLDER / "segmentation" / "upernet_convnext_atto_demo.py"
    config, theirs = load_config(path), Config.fromfile(path)
    theirs.model.decode_head.in_channels = config.model.decode_head.in_channels
    theirs.model.auxiliary_head.in_channels = config.model.auxiliary_head.in_channels
    runs, lay_out = [], yapf_api.FormatCode
    monkeypatch.setattr(
        yapf_api, "FormatCode", lambda *a, **kw: runs.append(a) or lay_out(*a, **kw)
    )
    first = config.pretty_text
    assert deepcopy(config).pretty_text == config.pretty_text == first and len(runs) == 1
    assert first == theirs.pretty_text
    for one in (config, theirs):
        one.model.backbone.drop_path_rate = 0.25
    assert config.pretty_text == theirs.pretty_text != first
    assert pickle.loads(pickle.dumps(config)).pretty_text == config.pretty_text
