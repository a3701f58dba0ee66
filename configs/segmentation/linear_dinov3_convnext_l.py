"""Linear head, frozen DINOv3 ConvNeXt-L, ADE20K at 512, 40k steps. Published: 47.8 mIoU."""

_base_ = "./linear_dinov3_convnext_t.py"

model = dict(
    backbone=dict(arch="large", init_cfg=dict(checkpoint="timm:convnext_large.dinov3_lvd1689m")),
    decode_head=dict(in_channels=1536),
)
