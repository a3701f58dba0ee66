"""Cascade Mask R-CNN, DINOv3 ConvNeXt-S, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_s.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_small.dinov3_lvd1689m")),
)
