"""DINO-DETR, 4 scales, ConvNeXt-B (22K, 384), COCO, 12 epochs. Published by detrex: 55.1 box AP."""

_base_ = "./dino_convnext_l_22k.py"

model = dict(
    backbone=dict(
        arch="base",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_1k_384.pth"
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
