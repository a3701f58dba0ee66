"""Cascade Mask R-CNN, ConvNeXt-S, COCO, 36 epochs. Published: 51.9 box AP, 45.0 mask AP."""

_base_ = "./cascade_convnext_t.py"

model = dict(
    backbone=dict(
        arch="small",
        drop_path_rate=0.6,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_small_1k_224.pth"
        ),
    ),
)
