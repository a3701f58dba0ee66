"""Cascade Mask R-CNN, Swin-S, COCO, 36 epochs. Published: 51.9 box AP, 45.0 mask AP."""

_base_ = "./cascade_swin_t.py"

model = dict(
    backbone=dict(
        depths=[2, 2, 18, 2],
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_small_patch4_window7_224.pth"
        ),
    )
)
