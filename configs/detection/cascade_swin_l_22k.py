"""Cascade Mask R-CNN, Swin-L (22K), COCO, 36 epochs. Published: 53.9 box AP, 46.7 mask AP."""

_base_ = "./cascade_swin_b.py"

model = dict(
    backbone=dict(
        embed_dims=192,
        num_heads=[6, 12, 24, 48],
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_large_patch4_window7_224_22k.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
