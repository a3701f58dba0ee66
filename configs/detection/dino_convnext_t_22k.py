"""DINO-DETR, 4 scales, ConvNeXt-T (22K, 384), COCO, 12 epochs. Published by detrex: 52.4 box AP."""

_base_ = "./dino_convnext_l_22k.py"

model = dict(
    backbone=dict(
        arch="tiny",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_22k_1k_384.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
