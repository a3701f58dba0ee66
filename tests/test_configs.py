"""Every config: its size, its recipe, its agreement with OpenMMLab's own, its spelling."""

import ast
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import REPOSITORY
from mmengine.config import Config

from backbones import ARCHITECTURES, InputError
from backbones.openmmlab.complexity import build_on_meta, count
from backbones.openmmlab.config import load_config, use_tta, validate

FOLDER = REPOSITORY / "configs"
CONFIGS = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("[!_]*/*.py"))


class Published(NamedTuple):
    """What the papers print for an experiment, and the exact counts behind it."""

    scores: tuple[float, float]  # box AP and mask AP; mIoU at one scale and at many
    params_v1: int
    params_v2: int
    gmacs: float  # exact to a tenth
    gflops: int  # as printed


# ConvNeXt paper, Tables 3, 4 and 7.
PUBLISHED = {
    "detection/mask_rcnn_convnext_t": Published((46.2, 41.7), 48_095_376, 48_141_744, 261.9, 262),
    "detection/cascade_convnext_t": Published((50.4, 43.7), 85_930_578, 85_976_946, 740.2, 741),
    "detection/cascade_convnext_s": Published((51.9, 45.0), 107_565_138, 107_659_890, 826.4, 827),
    "detection/cascade_convnext_b": Published((52.7, 45.6), 145_800_242, 145_926_578, 963.6, 964),
    "detection/cascade_convnext_b_22k": Published(
        (54.0, 46.9), 145_800_242, 145_926_578, 963.6, 964
    ),
    "detection/cascade_convnext_l_22k": Published(
        (54.8, 47.6), 254_710_770, 254_900_274, 1353.4, 1354
    ),
    "detection/cascade_convnext_xl_22k": Published(
        (55.2, 47.7), 406_875_058, 407_127_730, 1897.4, 1898
    ),
    "segmentation/upernet_convnext_t": Published((46.0, 46.7), 60_242_636, 60_289_004, 938.5, 939),
    "segmentation/upernet_convnext_s": Published(
        (48.7, 49.6), 81_877_196, 81_971_948, 1026.8, 1027
    ),
    "segmentation/upernet_convnext_b": Published(
        (49.1, 49.9), 122_102_956, 122_229_292, 1169.3, 1170
    ),
    "segmentation/upernet_convnext_b_22k": Published(
        (52.6, 53.1), 122_102_956, 122_229_292, 1827.1, 1828
    ),
    "segmentation/upernet_convnext_l_22k": Published(
        (53.2, 53.7), 234_994_796, 235_184_300, 2457.4, 2458
    ),
    "segmentation/upernet_convnext_xl_22k": Published(
        (53.6, 54.0), 391_140_396, 391_393_068, 3334.3, 3335
    ),
}


class Recipe(NamedTuple):
    arch: str
    lr: float
    decay_rate: float
    drop_path_rate: float
    checkpoint: str
    crop: int = 512


# The official configs.
RECIPES = {
    "detection/mask_rcnn_convnext_t": Recipe("tiny", 1e-4, 0.95, 0.4, "tiny_1k"),
    "detection/cascade_convnext_t": Recipe("tiny", 2e-4, 0.7, 0.4, "tiny_1k"),
    "detection/cascade_convnext_s": Recipe("small", 2e-4, 0.7, 0.6, "small_1k"),
    "detection/cascade_convnext_b": Recipe("base", 2e-4, 0.8, 0.7, "base_1k"),
    "detection/cascade_convnext_b_22k": Recipe("base", 1e-4, 0.8, 0.6, "base_22k"),
    "detection/cascade_convnext_l_22k": Recipe("large", 1e-4, 0.7, 0.7, "large_22k"),
    "detection/cascade_convnext_xl_22k": Recipe("xlarge", 1e-4, 0.7, 0.8, "xlarge_22k"),
    "segmentation/upernet_convnext_t": Recipe("tiny", 1e-4, 0.9, 0.4, "tiny_1k"),
    "segmentation/upernet_convnext_s": Recipe("small", 1e-4, 0.9, 0.3, "small_1k"),
    "segmentation/upernet_convnext_b": Recipe("base", 1e-4, 0.9, 0.4, "base_1k"),
    "segmentation/upernet_convnext_b_22k": Recipe("base", 1e-4, 0.9, 0.4, "base_22k", 640),
    "segmentation/upernet_convnext_l_22k": Recipe("large", 1e-4, 0.9, 0.4, "large_22k", 640),
    "segmentation/upernet_convnext_xl_22k": Recipe("xlarge", 8e-5, 0.9, 0.4, "xlarge_22k", 640),
}

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

# Every difference from them that there may be, and why.
ALLOWED = {
    "model.backbone.type": "our own backbone, registered for both libraries",
    "model.backbone.out_indices": "our default: all four stages",
    "model.backbone.gap_before_final_norm": "an argument of mmpretrain's backbone only",
    "model.backbone.init_cfg.checkpoint": "the official file; theirs is a conversion of it",
    "model.backbone.init_cfg.prefix": "our loader finds the backbone in a file by itself",
    "model.pretrained": "a deprecated argument, None there",
    "model.roi_head.bbox_roi_extractor.type": "boxes stay float32 when features are bf16",
    "model.roi_head.mask_roi_extractor.type": "boxes stay float32 when features are bf16",
    "optim_wrapper.constructor": "the same multipliers, with num_layers from the depths",
    "optim_wrapper.paramwise_cfg.num_layers": "comes from the depths",
    "optim_wrapper.dtype": "bf16 instead of fp16",
    "optim_wrapper.loss_scale": "dynamic is the default",
    "val_evaluator.type": "faster, the same figures",
    "test_evaluator.type": "faster, the same figures",
    "train_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "val_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "test_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "default_hooks.checkpoint.max_keep_ckpts": "a checkpoint of XL takes 5 GB",
    "log_processor.type": "memory on a machine without a GPU",
    "custom_hooks": "a resumable checkpoint at Ctrl-C, a check of the labels",
    "custom_imports.imports": "ours instead of mmpretrain",
    "tta": "both protocols by name; theirs is compared on its own below",
    **dict.fromkeys(
        [
            "checkpoint_file",
            "crop_size",
            "data_preprocessor",
            "data_root",
            "dataset_type",
            "img_ratios",
            "max_epochs",
            "norm_cfg",
            "optimizer",
            "test_pipeline",
            "train_pipeline",
            "tta_pipeline",
            "vis_backends",
        ],
        "a helper variable of theirs",
    ),
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


def test_every_published_experiment_is_here():
    assert set(PUBLISHED) == set(RECIPES) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_with_heads_as_wide_as_the_backbone(name):
    config = load_config(path_of(name))
    model = build_on_meta(config)
    dims = list(ARCHITECTURES[config.model.backbone.arch]["dims"])
    assert list(model.backbone.dims) == dims
    if task(name) == "detection":
        assert config.model.neck.in_channels == dims
    else:
        assert config.model.decode_head.in_channels == dims
        assert config.model.auxiliary_head.in_channels == dims[config.model.auxiliary_head.in_index]


@pytest.mark.parametrize("name", CONFIGS)
def test_is_short_and_opens_with_its_claim(name):
    text = path_of(name).read_text()
    assert len(text.splitlines()) <= 25
    claim = text.splitlines()[0]
    assert claim == f'"""{ast.get_docstring(ast.parse(text))}"""'
    if name in PUBLISHED:
        first, second = PUBLISHED[name].scores
        words = ("box AP", "mask AP") if task(name) == "detection" else ("mIoU", "multi-scale")
        assert claim.endswith(f'. Published: {first} {words[0]}, {second} {words[1]}."""')
    else:
        assert "_demo" in name


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    expected = PUBLISHED[name]
    config = load_config(path_of(name))
    v1 = count(config)
    assert v1.params["total"] == expected.params_v1
    assert round(v1.macs["total"] / 1e9, 1) == expected.gmacs
    assert v1.macs["total"] / 1e9 == pytest.approx(expected.gflops, rel=0.0015)

    config.model.backbone.update(use_grn=True, layer_scale_init_value=None)
    v2 = count(config)
    assert v2.params["total"] == expected.params_v2
    assert v2.macs == v1.macs


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    expected = RECIPES[name]
    config = load_config(path_of(name))
    backbone = config.model.backbone
    assert backbone.arch == expected.arch
    assert backbone.drop_path_rate == expected.drop_path_rate
    assert backbone.layer_scale_init_value == 1.0
    assert backbone.init_cfg == dict(
        type="Pretrained",
        checkpoint=f"https://dl.fbaipublicfiles.com/convnext/convnext_{expected.checkpoint}_224.pth",
    )

    wrapper = config.optim_wrapper
    assert wrapper.optimizer == dict(
        type="AdamW", lr=expected.lr, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
    assert wrapper.constructor == "LayerDecayConstructor"
    decay_type = "layer_wise" if task(name) == "detection" else "stage_wise"
    assert wrapper.paramwise_cfg == dict(decay_rate=expected.decay_rate, decay_type=decay_type)

    assert config.train_dataloader.batch_size == 2  # of 16 on 8 GPUs
    warm_up, decay = config.param_scheduler
    if task(name) == "detection":
        assert config.train_cfg.max_epochs == 36
        assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 1000, False)
        assert (decay.milestones, decay.gamma, decay.by_epoch) == ([27, 33], 0.1, True)
        assert config.auto_scale_lr.base_batch_size == 16
        return
    assert config.train_cfg.max_iters == 160_000
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1e-6, 1500, False)
    assert (decay.type, decay.power, decay.eta_min) == ("PolyLR", 1.0, 0.0)
    assert (decay.begin, decay.end, decay.by_epoch) == (1500, 160_000, False)
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


def plain(node: Any) -> Any:
    """Tuples as lists, and `backend_args=None`, which says nothing, left out."""
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items() if (k, v) != ("backend_args", None)}
    return [plain(v) for v in node] if isinstance(node, list | tuple) else node


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """The paths at which two plain trees differ."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            inside = f"{path}.{key}" if path else str(key)
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], inside)
            else:
                yield inside
    elif ours != theirs:
        yield path


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


def key_paths(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every key in a tree of dicts and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from key_paths(value, (*path, key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from key_paths(value, (*path, i))


def rename(config: Config, path: tuple, old: str, new: str) -> None:
    node = config._cfg_dict
    for part in path:
        node = node[part]
    node[new] = node.pop(old)


@pytest.mark.parametrize(
    "name",
    [
        "detection/cascade_convnext_b_22k",
        "detection/mask_rcnn_convnext_t",
        "segmentation/upernet_convnext_xl_22k",
    ],
)
def test_each_key_is_refused_when_misspelled(name):
    config = load_config(path_of(name))
    accepted = []
    for *parents, key in list(key_paths(config.to_dict())):
        misspelled = f"{key}x"
        rename(config, parents, key, misspelled)
        try:
            validate(config)
        except InputError as error:
            assert ".".join(map(str, [*parents, misspelled])) in str(error)
        else:
            accepted.append((*parents, misspelled))
        rename(config, parents, misspelled, key)
    assert not accepted
    validate(config)
