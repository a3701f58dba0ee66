"""Train the shipped recipe of a head on a few drawn images until it knows them, with our tools.

A recipe keeps its head, its losses, its way of evaluating and its data format. ConvNeXt-Atto from
scratch, a narrow head and four small images take the place of its sizes, so that a minute is
enough. The model is tested on the images that it was trained on.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.forked import run_forked
from support.running import REPOSITORY, Outcome

SIZE, IMAGES = 96, 4


@dataclass(frozen=True)
class Head:
    """Describe how a head is trained until it knows a few images.

    Attributes:
        metric: the key of its score.
        reached: the score that was measured.
        least: the score that it must reach, on any processor.
        steps: steps of training, each of all images.
        changes: new values of keys below `model`.
    """

    metric: str
    reached: float
    least: float
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """Hold a trained model: its saved config, its checkpoint, its data and its work dir."""

    config: Path
    checkpoint: Path
    data: Path
    folder: Path

    def run(self, tool: str, *arguments: object) -> Outcome:
        """Run a tool on the model, which must succeed."""
        done = run_forked(tool, *arguments, cwd=self.folder)
        assert done.status == 0, done.err[-2000:]
        return done


def draw_data(folder: Path) -> Path:
    """Draw a demo set whose validation images are its training images, and name its classes."""
    from backbones.openmmlab.data.shapes import DEMO_GROUNDS, DEMO_SHAPES, prepare_demo

    prepare_demo(folder, SIZE, IMAGES, 1, seed=0)
    data = folder / "demo"
    for train, val in (
        ("train2017", "val2017"),
        ("images/training", "images/validation"),
        ("annotations/training", "annotations/validation"),
        ("annotations/panoptic_train2017", "annotations/panoptic_val2017"),
    ):
        shutil.rmtree(data / val)
        shutil.copytree(data / train, data / val)
    for kind in ("instances", "panoptic"):
        train = data / "annotations" / f"{kind}_train2017.json"
        shutil.copy(train, train.with_name(f"{kind}_val2017.json"))
    (data / "classes.txt").write_text("\n".join((*DEMO_SHAPES, *DEMO_GROUNDS)))
    return data


def write_recipe(name: str, head: Head, folder: Path) -> Path:
    """Write a recipe of configs/ with a small model, small images and a short schedule.

    Args:
        name: the recipe's path below `configs`, without the suffix.
        head: how it is trained.
        folder: for the file.
    """
    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.walk import nodes
    from benchmarks.narrow_models import ARCH, fit_decode_heads, fit_neck, narrow, shorten

    config = load_config(REPOSITORY / "configs" / f"{name}.py")
    model = config.model.to_dict()
    backbone = {**model.pop("backbone"), "arch": ARCH, "drop_path_rate": 0.0, "init_cfg": None}
    backbone.pop("with_cp", None)
    if "batch_augments" in model["data_preprocessor"]:
        model["data_preprocessor"]["batch_augments"] = None
    if config.default_scope == "mmseg":
        model["data_preprocessor"]["size"] = (SIZE, SIZE)
        model["test_cfg"] = dict(mode="whole")
    if config.default_scope == "mmdet" or "mask2former" in name:
        model = narrow(model)
    elif "neck" in model:
        model = fit_neck(shorten(model))
    else:
        model = shorten(model)
        for part in ("decode_head", "auxiliary_head"):
            model[part] = fit_decode_heads(model[part])
    for _, node in nodes(model):
        if node.get("num_groups") == 32:  # a group of one channel would lose its mean
            node["num_groups"] = 8
        if node.get("num_points") == 12544:  # of a mask that has 576
            node["num_points"] = 1024
    config.model = {**model, "backbone": backbone}
    config.merge_from_dict({f"model.{key}": value for key, value in head.changes.items()})
    for split in ("train", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False, batch_size=IMAGES)
        loader.pop("prefetch_factor", None)
        loader.pop("batch_sampler", None)
        loader.dataset.pipeline = _pipeline(config.default_scope, split, name)
    config.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    _shorten_schedule(config, head.steps)
    path = folder / f"{Path(name).name}.py"
    config.dump(path)
    return path


def _pipeline(scope: str, split: str, name: str) -> list[dict]:
    """Return the steps from a file to a model's input, without augmentation."""
    if scope == "mmseg":
        labels = dict(type="LoadAnnotations", reduce_zero_label=True)
        return [dict(type="LoadImage"), labels, dict(type="PackSegInputs")]
    loading = dict(type="LoadAnnotations", with_bbox=True, with_mask=False)
    if "panoptic" in name:
        loading.update(type="LoadPanopticAnnotations", with_mask=True, with_seg=True)
    elif "mask2former" in name or "rtmdet_ins" in name:
        loading["with_mask"] = True
    packing = dict(type="PackDetInputs")
    if split == "test":
        packing["meta_keys"] = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    scaling = dict(type="Resize", scale=(SIZE, SIZE), keep_ratio=True)
    return [dict(type="LoadImage"), loading, scaling, packing]


def _shorten_schedule(config: Any, steps: int) -> None:
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=steps)
    config.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=10),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=10, end=steps, eta_min=1e-5),
    ]
    config.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.0),
        clip_grad=dict(max_norm=10.0),
    )
    config.custom_hooks = []
    config.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=steps)
    config.default_hooks.logger = dict(type="LoggerHook", interval=10)
    config.log_processor = dict(type="LogProcessor", window_size=10, by_epoch=False)
    config.randomness = dict(seed=0)
    config.auto_scale_lr = dict(enable=False, base_batch_size=IMAGES)


def train(name: str, head: Head, data: Path, folder: Path) -> Trained:
    """Train a recipe on a set that `draw_data` has drawn.

    Args:
        name, head: as in `write_recipe`.
        data: the set.
        folder: for the config and the work dir.
    """
    path = write_recipe(name, head, folder)
    work_dir = folder / "run"
    trained = Trained(work_dir / path.name, work_dir / f"iter_{head.steps}.pth", data, folder)
    trained.run("train.py", path, "--data", data, "--work-dir", work_dir)
    return trained


def score(trained: Trained, head: Head) -> float:
    """Return the score of a trained model by the recipe's own evaluator, with tools/test.py."""
    out = trained.folder / "metrics.json"
    work_dir = ("--work-dir", trained.config.parent)
    trained.run("test.py", trained.config, trained.checkpoint, *work_dir, "--out", out)
    return json.loads(out.read_text())[head.metric]


def predict(trained: Trained, images: str) -> Path:
    """Predict a folder of the data with tools/predict.py; return the folder of the predictions."""
    out = trained.folder / "predictions"
    arguments = (trained.config, trained.checkpoint, trained.data / images, "--out", out)
    trained.run("predict.py", *arguments)
    assert len(list((out / "pictures").iterdir())) == IMAGES
    return out
