"""UperNet, DINOv3 ConvNeXt-S, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnext_s.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_small.dinov3_lvd1689m")),
)
