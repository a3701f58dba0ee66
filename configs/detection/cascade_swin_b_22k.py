"""Cascade Mask R-CNN, Swin-B (22K), COCO, 36 epochs. Published: 53.0 box AP, 45.8 mask AP."""

_base_ = "./cascade_swin_b.py"

model = dict(
    backbone=dict(
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_base_patch4_window7_224_22k.pth"
        )
    )
)
