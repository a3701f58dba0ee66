"""Cascade Mask R-CNN, ConvNeXt-L (22K), COCO, 36 epochs. Published: 54.8 box AP, 47.6 mask AP."""

_base_ = "./cascade_convnext_b_22k.py"

model = dict(
    backbone=dict(
        arch="large",
        drop_path_rate=0.7,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
