"""Define deterministic runs: their configs, their data and the losses in their logs."""

import json
import re
import shutil
from pathlib import Path

COMMON = """
_base_ = {base!r}
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1))
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.01, weight_decay=0.0))
param_scheduler = []
val_dataloader = val_cfg = val_evaluator = None
"""
DETERMINISTIC = {
    # No flips, no sampling of boxes and no batch statistics: nothing that differs by rank.
    "detection": COMMON
    + """
train_cfg = dict(max_epochs=1)
train_dataloader = dict(
    num_workers=0, persistent_workers=False, batch_size={batch},
    sampler=dict(shuffle=False),
    dataset=dict(pipeline=[
        dict(type="LoadImage"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="PackDetInputs"),
    ]),
)
heads = [{{**head, "norm_cfg": None}} for head in _base_.model.roi_head.bbox_head]
sampler = dict(type="RandomSampler", num=10**6, pos_fraction=1.0)
stages = [{{**stage, "sampler": sampler}} for stage in _base_.model.train_cfg.rcnn]
model = dict(
    roi_head=dict(bbox_head=heads),
    train_cfg=dict(rpn=dict(sampler=dict(num=10**6, pos_fraction=1.0)), rcnn=stages),
)
del heads, sampler, stages
""",
    "segmentation": COMMON
    + """
train_cfg = dict(max_iters=4)
train_dataloader = dict(
    num_workers=0, persistent_workers=False, batch_size={batch},
    sampler=dict(shuffle=False),
    dataset=dict(pipeline=[
        dict(type="LoadImage"),
        dict(type="LoadAnnotations", reduce_zero_label=True),
        dict(type="PackSegInputs"),
    ]),
)
model = dict(
    decode_head=dict(dropout_ratio=0.0, norm_cfg=None),
    auxiliary_head=dict(dropout_ratio=0.0, norm_cfg=None),
)
""",
}


def losses(log: str) -> list[float]:
    return [float(x) for x in re.findall(r"\(train\).*? loss: ([\d.einfan]+)", log)]


def two_equal_halves(folder: Path, task: str) -> Path:
    """Duplicate every image of a demo set in place, so that two ranks see the same ones."""
    if task == "detection":
        path = folder / "annotations" / "instances_train2017.json"
        data = json.loads(path.read_text())
        images, annotations = [], []
        for image in data["images"]:
            for copy in (0, 1):
                images.append({**image, "id": 2 * image["id"] + copy})
        for row in data["annotations"]:
            for copy in (0, 1):
                annotations.append(
                    {**row, "id": 2 * row["id"] + copy, "image_id": 2 * row["image_id"] + copy}
                )
        path.write_text(json.dumps({**data, "images": images, "annotations": annotations}))
    else:
        for path in [*folder.glob("images/training/*"), *folder.glob("annotations/training/*")]:
            shutil.copy(path, path.with_stem(path.stem + "b"))
    return folder
