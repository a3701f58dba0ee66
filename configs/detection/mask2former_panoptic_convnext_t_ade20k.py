"""Mask2Former, panoptic, ConvNeXt-T, ADE20K at 640, 160k steps. Not published."""

# Mask2Former's own schedule; drop path as in mmdet's with Swin-T.
_base_ = "../_base_/models/mask2former_panoptic_ade20k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="tiny",
        drop_path_rate=0.3,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth",
        ),
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
