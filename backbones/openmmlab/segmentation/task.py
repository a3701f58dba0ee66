"""Semantic segmentation, as the rest of the suite knows it."""

import re

from backbones.openmmlab.tasks import Metric, Task, register_task

from .figures import segmentation_figures

SEGMENTATION = register_task(
    Task(
        name="segmentation",
        scope="mmseg",
        pipeline_tag="image-segmentation",
        metrics=(
            Metric("mIoU", "mIoU", best=100.0, main=True),
            Metric("boundary_mIoU", "boundary mIoU", best=100.0, main=True, outline_of="mIoU"),
            Metric("mAcc", "mean recall", best=100.0),
            Metric("aAcc", "pixel accuracy", best=100.0),
        ),
        compiled_parts=("backbone", "neck", "decode_head", "auxiliary_head"),
        class_layers=re.compile(r"(?:^|\.)conv_seg$"),
        figures=segmentation_figures,
    )
)
