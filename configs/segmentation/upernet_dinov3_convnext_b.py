"""UperNet, DINOv3 ConvNeXt-B, ADE20K at 640, 160k steps. Not published."""

_base_ = "./upernet_convnext_b_22k.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_base.dinov3_lvd1689m")),
)
