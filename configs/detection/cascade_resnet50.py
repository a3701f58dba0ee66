"""Cascade Mask R-CNN, ResNet-50, COCO, 36 epochs. Published: 46.3 box AP, 40.1 mask AP."""

_base_ = [
    "../_base_/models/cascade_mask_rcnn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_3x_swin.py",
    "../_base_/detection_runtime.py",
]

model = dict(
    backbone=dict(
        type="ResNet",
        depth=50,
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://download.pytorch.org/models/resnet50-0676ba61.pth",
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
