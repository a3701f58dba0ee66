"""Write the demo configs, reduced so that a run takes seconds."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from support.running import DETECTION, SEGMENTATION

COMMON = """
_base_ = {base!r}
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1))
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""
SMALL = {
    "segmentation": COMMON.format(base=str(SEGMENTATION))
    + """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])),
    decode_head=dict(in_channels=[16, 24, 32, 40], channels=8),
    auxiliary_head=dict(in_channels=32, channels=8),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_cfg = dict(max_iters=6, val_interval=100)
steps = _base_.train_dataloader.dataset.pipeline
crop = dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[*steps[:3], crop, *steps[4:]]),
)
val_dataloader = dict(dataset=dict(indices=1))
default_hooks["checkpoint"] = dict(interval=2)
del steps, crop
""",
    "detection": COMMON.format(base=str(DETECTION))
    + """
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
heads = [{**head, "fc_out_channels": 32} for head in _base_.model.roi_head.bbox_head]
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])),
    neck=dict(in_channels=[16, 24, 32, 40]),
    roi_head=dict(bbox_head=heads, mask_head=dict(conv_out_channels=8)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=50)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.05)),
)
del heads
""",
}
# Augmentation, schedules, stochastic depth and a validation in six short steps.
SIX_STEPS: dict[str, Any] = {
    "train_cfg.val_interval": 3,
    "val_dataloader.dataset.indices": 2,
    "default_hooks.checkpoint.interval": 3,
    "model.backbone.drop_path_rate": 0.5,
    "param_scheduler.0.end": 4,
    "param_scheduler.0.start_factor": 0.5,
    "randomness.seed": 3,
    "train_dataloader.dataset.pipeline.2.scale": (72, 72),
    "val_dataloader.dataset.pipeline.1.scale": (64, 64),
}


def write_config(folder: Path, task: str, *lines: str) -> Path:
    """Write a small config of a task, followed by these lines."""
    path = folder / f"{task}.py"
    path.write_text("\n".join([SMALL[task], *lines]))
    return path


def six_steps(folder: Path, data: Path, options: dict) -> Config:
    """Return the config of six steps of the demo segmentor on these data."""
    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.data.own_data import use_data

    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(write_config(folder, "segmentation"), {**SIX_STEPS, **options})
    use_data(config, data)
    return config
