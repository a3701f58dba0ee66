"""Linear head, frozen DINOv3 ConvNeXt-S, ADE20K at 512, 40k steps. Published: 44.8 mIoU."""

_base_ = "./linear_dinov3_convnext_t.py"

model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="timm:convnext_small.dinov3_lvd1689m")),
)
