"""UperNet, DINOv3 ConvNeXt-L, ADE20K at 640, 160k steps. Not published."""

_base_ = "./upernet_convnext_l_22k.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_large.dinov3_lvd1689m")),
)
