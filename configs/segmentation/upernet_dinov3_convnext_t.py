"""UperNet, DINOv3 ConvNeXt-T, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnext_t.py"

model = dict(
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_tiny.dinov3_lvd1689m")),
)
