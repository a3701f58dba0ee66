"""Cascade Mask R-CNN, DINOv3 ConvNeXt-L, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_l_22k.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_large.dinov3_lvd1689m")),
)
