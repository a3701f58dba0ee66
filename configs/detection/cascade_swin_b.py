"""Cascade Mask R-CNN, Swin-B, COCO, 36 epochs. Published: 51.9 box AP, 45.0 mask AP."""

_base_ = "./cascade_swin_t.py"

model = dict(
    backbone=dict(
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_base_patch4_window7_224.pth"
        ),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
