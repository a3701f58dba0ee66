"""Cascade Mask R-CNN, DINOv3 ConvNeXt-B, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_b_22k.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_base.dinov3_lvd1689m")),
)
