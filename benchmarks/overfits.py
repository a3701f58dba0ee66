"""Set up runs that learn a few photographs by heart: what they score shows that training works."""

import sys
from pathlib import Path

from backbones.errors import InputError

REPOSITORY = Path(__file__).parents[1]
SCORES = {"detection": ("coco/bbox_mAP", "coco/segm_mAP"), "segmentation": ("mIoU",)}
COMMON = """
default_hooks = dict(logger=dict(interval=50), report=None)
param_scheduler = [dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100)]
auto_scale_lr = dict(base_batch_size={batch})
"""
CONFIGS = {
    "detection": """
_base_ = {base!r}
model = dict(backbone=dict(drop_path_rate=0.0))
train_cfg = dict(max_epochs={passes}, val_interval={passes} // 3)
train_dataloader = dict(
    batch_size={batch},
    dataset=dict(
        filter_cfg=None,
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="Resize", scale=(800, 640), keep_ratio=True),
            dict(type="PackDetInputs"),
        ],
    ),
)
steps = _base_.val_dataloader.dataset.pipeline
steps[1]["scale"] = (800, 640)
val_dataloader = dict(dataset=dict(pipeline=steps))
del steps
""",
    "segmentation": """
_base_ = {base!r}
model = dict(backbone=dict(drop_path_rate=0.0))
train_cfg = dict(max_iters={steps}, val_interval={steps} // 3)
train_dataloader = dict(batch_size={batch})
""",
}
BASES = {
    "detection": "configs/detection/cascade_convnext_t.py",
    "segmentation": "configs/segmentation/upernet_convnext_t.py",
}
# Guesses: no GPU has run them yet. A run that is cut off has the score of its last evaluation.
PASSES, STEPS, BATCH = 60, 1200, 8
SPLITS = {
    "detection": ("train2017", "val2017"),
    "segmentation": ("images/training", "images/validation"),
}


def overfit(task: str, data: Path, folder: Path) -> list[str]:
    """Write a task's data and config into a folder; return the command that trains.

    The training photographs are the validation's too.

    Raises:
        InputError: the photographs are not there.
    """
    root = data / ("coco_mini" if task == "detection" else "ade_mini")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder", code="not-found", where=root)
    copy = folder / "data"
    links = dict.fromkeys(SPLITS[task], root / SPLITS[task][0])
    if task == "detection":
        for split in ("train", "val"):
            name = f"annotations/instances_{split}2017.json"
            links[name] = root / "annotations" / "instances_train2017.json"
    else:
        for split in ("training", "validation"):
            links[f"annotations/{split}"] = root / "annotations" / "training"
    for name, target in links.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).symlink_to(target.resolve())
    config = folder / f"{task}.py"
    base = str(REPOSITORY / BASES[task])
    text = CONFIGS[task] + COMMON
    config.write_text(text.format(base=base, passes=PASSES, steps=STEPS, batch=BATCH))
    tool = str(REPOSITORY / "tools" / "train.py")
    return [
        *(sys.executable, tool, str(config), "--data", str(copy)),
        *("--work-dir", str(folder / "run")),
    ]
