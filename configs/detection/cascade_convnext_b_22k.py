"""Cascade Mask R-CNN, ConvNeXt-B (22K), COCO, 36 epochs. Published: 54.0 box AP, 46.9 mask AP."""

_base_ = "./cascade_convnext_b.py"

model = dict(
    backbone=dict(
        drop_path_rate=0.6,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth"
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.0001))
