"""Our recipes against the values of the official configs, and the table of what differs.

`official_recipes.json` holds the official values under their own keys, and cites their files.
"""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from support.running import REPOSITORY

from backbones.architectures import ARCHITECTURES, ISOTROPIC
from backbones.openmmlab.config import load_config
from backbones.openmmlab.training.layer_decay import num_layers
from backbones.weights import find

OFFICIAL = json.loads((Path(__file__).parent / "official_recipes.json").read_text())
RECIPES = OFFICIAL["recipes"]
DETECTORS = [name for name in RECIPES if name.startswith("detection")]
SEGMENTORS = [name for name in RECIPES if name.startswith("segmentation")]
HEADING = "## Where ours, the official and OpenMMLab's recipes differ"


@cache
def ours(name: str) -> Config:
    """The config, read once; not to be changed."""
    return load_config(REPOSITORY / "configs" / f"{name}.py")


def common(name: str) -> dict:
    return OFFICIAL["common"][name.partition("/")[0]]


def steps_of(config: Config, split: str) -> dict:
    return {step.type: step for step in config[f"{split}_dataloader"].dataset.pipeline}


@pytest.mark.parametrize("name", RECIPES)
def test_network_and_optimizer(name):
    official, config = RECIPES[name], ours(name)
    backbone, wrapper = config.model.backbone, config.optim_wrapper
    size = ARCHITECTURES[backbone.arch]
    assert [*size["depths"]] == official["depths"] and [*size["dims"]] == official["dims"]
    assert backbone.arch == official["arch"]
    assert find(official["pretrained"]).source == backbone.init_cfg.checkpoint
    for key in ("drop_path_rate", "layer_scale_init_value"):
        assert backbone[key] == official[key]
    assert wrapper.optimizer == dict(
        type=common(name)["optimizer"],
        lr=official["lr"],
        betas=tuple(common(name)["betas"]),
        weight_decay=common(name)["weight_decay"],
    )
    assert wrapper.paramwise_cfg == dict(
        decay_rate=official["decay_rate"], decay_type=common(name)["decay_type"]
    )
    assert num_layers(official["depths"]) == official["num_layers"]
    assert "clip_grad" not in wrapper
    assert config.train_dataloader.batch_size == common(name)["images_per_gpu"]
    assert config.auto_scale_lr.base_batch_size == 8 * common(name)["images_per_gpu"]


@pytest.mark.parametrize("name", DETECTORS)
def test_data_of_a_detector(name):
    official, config = common(name), ours(name)
    steps = steps_of(config, "train")
    assert steps["RandomFlip"].prob == official["flip"]
    (resize,), (before, crop, after) = steps["RandomChoice"].transforms
    for one in (resize, after):
        assert [[*scale] for scale in one.scales] == official["scales"]
    assert [[*scale] for scale in before.scales] == official["scales_before_crop"]
    assert [*crop.crop_size] == official["crop"]
    assert config.model.data_preprocessor.pad_size_divisor == official["size_divisor"]
    assert [*steps_of(config, "test")["Resize"].scale] == official["test_scale"]
    rcnn = config.model.test_cfg.rcnn
    found = (rcnn.score_thr, rcnn.nms.iou_threshold, rcnn.max_per_img)
    assert found == (official["score_thr"], official["nms"], official["max_per_img"])


@pytest.mark.parametrize("name", SEGMENTORS)
def test_data_of_a_segmentor(name):
    official, config = common(name), ours(name)
    crop, stride = RECIPES[name]["crop"], RECIPES[name]["stride"]
    test_cfg = dict(mode=official["test_mode"], crop_size=(crop, crop), stride=(stride, stride))
    assert config.model.test_cfg == test_cfg
    assert config.tta.paper.test_cfg.mode == official["multi_scale_test_mode"]
    assert steps_of(config, "train")["RandomCrop"].crop_size == (crop, crop)
    assert config.model.decode_head.dropout_ratio == official["dropout"]
    assert config.model.auxiliary_head.loss_decode.loss_weight == official["auxiliary_weight"]


def rates(config: Config, iterations: int, epoch_length: int) -> list[float]:
    """Return the learning rate of each of the first iterations, from mmengine's schedulers."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.AdamW([parameter], lr=config.optim_wrapper.optimizer.lr))
    built = [PARAM_SCHEDULERS.build({**s, "optimizer": wrapper}) for s in config.param_scheduler]
    found = []
    for iteration in range(1, iterations + 1):
        found.append(wrapper.get_lr()["lr"][0])
        for scheduler in built:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return found


def official_rate(name: str, iteration: int, epoch_length: int) -> float:
    """Return what mmcv 1's hooks set: the regular rate, scaled while it warms up."""
    official = common(name)
    rate = RECIPES[name]["lr"]
    if "step" in official:
        epoch = iteration // epoch_length
        rate *= official["gamma"] ** sum(epoch >= step for step in official["step"])
    else:
        rate *= (1 - iteration / official["max_iters"]) ** official["power"]
    if iteration < official["warmup_iters"]:
        share = 1 - iteration / official["warmup_iters"]
        rate *= 1 - share * (1 - official["warmup_ratio"])
    return rate


@pytest.mark.parametrize(
    "name", ["detection/cascade_convnext_t", "segmentation/upernet_convnext_t"]
)
def test_learning_rates_are_the_official_ones(name):
    length = 100  # iterations of an epoch, of which a segmentor knows nothing
    found = rates(ours(name), 3_500, length)
    # mmcv 1's warm-up ends one iteration later than mmengine's.
    for iteration in (0, 1, 100, 499, 500, 1_000, 1_499, 1_500, 2_699, 2_700, 3_300, 3_499):
        theirs = official_rate(name, iteration, length)
        assert found[iteration] == pytest.approx(theirs, rel=2.1e-3, abs=1e-12), iteration
    assert found[250] < 0.6 * RECIPES[name]["lr"]


@pytest.mark.parametrize("name", RECIPES)
def test_schedule(name):
    official, (warm_up, decay) = common(name), ours(name).param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.by_epoch) == ("LinearLR", 0, False)
    found = (warm_up.end, warm_up.start_factor)
    assert found == (official["warmup_iters"], official["warmup_ratio"])
    if name in DETECTORS:
        assert (decay.milestones, decay.gamma) == (official["step"], official["gamma"])
        assert decay.end == ours(name).train_cfg.max_epochs == official["max_epochs"]
    else:
        assert (decay.power, decay.eta_min) == (official["power"], official["min_lr"])
        assert decay.end == ours(name).train_cfg.max_iters == official["max_iters"]


def library(path: str) -> Config:
    package, _, below = path.partition("/")
    folder = Path(find_spec(package).submodule_search_locations[0], ".mim/configs/convnext")
    return Config.fromfile(folder / below, import_custom_modules=False)


def precision(config: Config) -> str:
    wrapper = config.optim_wrapper
    assert wrapper.type == "AmpOptimWrapper"
    return wrapper.get("dtype", "float16")


def test_the_page_lists_what_differs():
    """Each row's three cells are what the three say."""
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    rows = {}
    for line in re.findall(r"^\| (.+) \|$", section, re.MULTILINE)[1:]:
        name, *cells = line.split(" | ")
        rows[name] = [re.match(r"`?([\w.-]+)", cell)[1] for cell in cells]
    detector, segmentor = DETECTORS[1], SEGMENTORS[0]
    theirs = library(
        "mmdet/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
    )
    tiny, large = (
        library(f"mmseg/convnext-{size}_upernet_8xb2-amp-160k_ade20k-{crop}x{crop}.py")
        for size, crop in (("tiny", 512), ("large", 640))
    )
    fp16 = {True: "float16", False: "float32"}
    small = {RECIPES[n]["fp16"] for n in RECIPES if RECIPES[n]["arch"] in ("tiny", "small", "base")}
    big = {RECIPES[n]["fp16"] for n in RECIPES if RECIPES[n]["arch"] in ("large", "xlarge")}
    assert (small, big) == ({True}, {False})
    assert rows["iterations of a detector's warm-up"] == [
        str(ours(detector).param_scheduler[0].end),
        str(common(detector)["warmup_iters"]),
        str(theirs.param_scheduler[0].end),
    ]
    assert rows["iteration from which a segmentor's rate falls"] == [
        str(ours(segmentor).param_scheduler[1].begin), "0", str(tiny.param_scheduler[1].begin)
    ]  # fmt: skip
    assert rows["precision of training, T, S and B"] == [
        precision(ours(detector)), fp16[True], precision(theirs)
    ]  # fmt: skip
    assert rows["precision of training, L and XL"] == [
        precision(ours(SEGMENTORS[4])), fp16[False], precision(large)
    ]  # fmt: skip
    assert "tf32" not in theirs.env_cfg and ours(detector).env_cfg.tf32
    assert rows["float32 products on a GPU"] == ["TF32", "float32", "float32"]
    assert rows["isotropic L's initial layer scale"][:2] == [
        f"{ISOTROPIC['large']['layer_scale_init_value']:g}".replace("e-06", "e-6"), "1e-6"
    ]  # fmt: skip
    assert OFFICIAL["isotropic"] == {k: v["layer_scale_init_value"] for k, v in ISOTROPIC.items()}
    warm_up = ours("detection/mask_rcnn_convnextv2_b").param_scheduler[0].end
    assert rows["iterations of a V2 Mask R-CNN's warm-up"] == [str(warm_up), "not", "1000"]
