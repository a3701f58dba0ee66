"""Cascade Mask R-CNN, DINOv3 ConvNeXt-T, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_t.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_tiny.dinov3_lvd1689m")),
)
