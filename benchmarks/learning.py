"""Train each head for which there is a recipe on the drawn demo set, and print what it learned.

python -m benchmarks.learning
python -m benchmarks.learning --only detection/retinanet_convnext_t

A recipe keeps its head and its losses. ConvNeXt-Atto from scratch, a narrow head and 96 x 96 images
take the place of its sizes, and the head is trained on a few images until it knows them: the score
is that on the training images.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.data.shapes import prepare_demo
from backbones.openmmlab.training.runner import Runner
from backbones.shipped import CONFIGS

from .narrow_models import fit_decode_heads, fit_neck, narrow

SIZE, IMAGES = 96, 4


@dataclass(frozen=True)
class Head:
    """Describe how a recipe's head is trained on a few images.

    Attributes:
        metric: the key of its score, in [0, 1] or [0, 100].
        least: the score that it must reach.
        steps: steps of training, of all images.
        changes: new values of keys below `model`.
    """

    metric: str
    least: float
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)


BOXES, MASKS, PQ = "coco/bbox_mAP_50", "coco/segm_mAP_50", "coco_panoptic/PQ"
FEW_QUERIES = {"panoptic_head.num_queries": 20, "test_cfg.max_per_image": 20}
HEADS = {
    "detection/faster_rcnn_convnext_t": Head(BOXES, 0.5, 80),
    "detection/retinanet_convnext_t": Head(BOXES, 0.5, 80),
    "detection/rtmdet_ins_convnext_t": Head(MASKS, 0.5, 80),
    "detection/dino_convnext_t_22k": Head(
        BOXES, 0.5, 150, {"bbox_head.embed_dims": 32, "test_cfg.max_per_img": 20}
    ),
    "detection/mask2former_convnext_t": Head(MASKS, 0.5, 150, FEW_QUERIES),
    "detection/mask2former_panoptic_convnext_t": Head(PQ, 50, 150, FEW_QUERIES),
    "segmentation/mask2former_convnext_t_ade20k": Head("mIoU", 50, 150),
    "segmentation/fpn_convnext_t": Head("mIoU", 50, 80),
    "segmentation/deeplabv3plus_convnext_t": Head("mIoU", 50, 80),
}


def small_config(name: str) -> Config:
    """Return a recipe with ConvNeXt-Atto, a narrow head and the demo set's small images.

    Args:
        name: a key of `HEADS`.
    """
    head, config = HEADS[name], load_config(CONFIGS / f"{name}.py")
    model = config.model.to_dict()
    backbone = model.pop("backbone")
    model["data_preprocessor"].pop("batch_augments", None)
    model = narrow(model)
    if config.default_scope == "mmseg":
        model["data_preprocessor"]["size"] = (SIZE, SIZE)
        model["test_cfg"] = dict(mode="whole")
        if "neck" in model:
            model = fit_neck(model)
        elif "deeplab" in name:
            for part in ("decode_head", "auxiliary_head"):
                model[part] = fit_decode_heads(model[part])
    backbone.pop("with_cp", None)
    config.model = model | dict(
        backbone={**backbone, "arch": "atto", "drop_path_rate": 0.0, "init_cfg": None}
    )
    config.merge_from_dict({f"model.{key}": value for key, value in head.changes.items()})
    demo = Config.fromfile(CONFIGS / "_base_" / "datasets" / f"{_demo_set(config)}.py")
    panoptic = "panoptic" in name
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.pop("prefetch_factor", None)
        loader.dataset = (loader.dataset if panoptic else demo[f"{split}_dataloader"].dataset).copy()
        loader.dataset.pipeline = _pipeline(config.default_scope, split, name)
        loader.batch_sampler = None
    config.train_dataloader.batch_size = IMAGES
    config.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    config.train_cfg = dict(
        type="IterBasedTrainLoop", max_iters=head.steps, val_interval=head.steps
    )
    config.val_cfg, config.test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
    config.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=5),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=5, end=head.steps, eta_min=1e-5),
    ]
    config.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.0),
        clip_grad=dict(max_norm=10.0),
    )
    config.custom_hooks = []
    config.default_hooks.checkpoint = dict(
        type="CheckpointHook", by_epoch=False, interval=head.steps
    )
    config.randomness = dict(seed=0)
    config.auto_scale_lr = dict(enable=False, base_batch_size=IMAGES)
    return config


def _demo_set(config: Config) -> str:
    return "demo_semantic" if config.default_scope == "mmseg" else "demo_instance"


def _pipeline(scope: str, split: str, name: str) -> list[dict]:
    """Return the steps from a file to a model's input, without augmentation."""
    if scope == "mmseg":
        labels = dict(type="LoadAnnotations", reduce_zero_label=True)
        return [dict(type="LoadImage"), labels, dict(type="PackSegInputs")]
    kind, more = ("LoadPanopticAnnotations", dict(with_seg=True)) if "panoptic" in name else (
        "LoadAnnotations", {}
    )
    has_masks = any(word in name for word in ("mask2former", "rtmdet_ins"))
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    packed = dict(type="PackDetInputs", **({} if split == "train" else dict(meta_keys=keys)))
    scaled = dict(type="Resize", scale=(SIZE, SIZE), keep_ratio=True)
    return [
        dict(type="LoadImage"),
        dict(type=kind, with_bbox=True, with_mask=has_masks, **more),
        scaled,
        packed,
    ]


def write_config(name: str, folder: Path) -> Path:
    """Write `small_config` into a folder; return the file."""
    path = folder / f"{Path(name).name}.py"
    small_config(name).dump(path)
    return path


def overfit(name: str, data: Path, folder: Path) -> float:
    """Train a head on the training images of the demo set; return its score on the same.

    Args:
        name: a key of `HEADS`.
        data: a demo set whose validation images are its training images.
        folder: for the config and the work dir.
    """
    options = Options(write_config(name, folder), data=data, work_dir=folder / "run")
    runner = Runner.from_cfg(prepare(options, "train"))
    runner.train()
    return runner.val()[HEADS[name].metric]
