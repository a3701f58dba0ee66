"""Linear head, frozen DINOv3 ConvNeXt-B, ADE20K at 512, 40k steps. Published: 46.3 mIoU."""

_base_ = "./linear_dinov3_convnext_t.py"

model = dict(
    backbone=dict(arch="base", init_cfg=dict(checkpoint="timm:convnext_base.dinov3_lvd1689m")),
    decode_head=dict(in_channels=1024),
)
