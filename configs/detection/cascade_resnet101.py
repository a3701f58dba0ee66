"""Cascade Mask R-CNN, ResNet-101, COCO, 36 epochs. Not published."""

_base_ = "./cascade_resnet50.py"

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint="https://download.pytorch.org/models/resnet101-63fe2227.pth"),
    )
)
