"""DINO-DETR, 4 scales, ConvNeXt-S (22K, 384), COCO, 12 epochs. Published by detrex: 54.2 box AP."""

_base_ = "./dino_convnext_l_22k.py"

model = dict(
    backbone=dict(
        arch="small",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_small_22k_1k_384.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
