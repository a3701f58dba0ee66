"""Semantic FPN, ConvNeXt-T, ADE20K at 512, 80k steps. Not published."""

# mmseg's schedule for Semantic FPN with Twins, whose optimizer is AdamW too.
_base_ = "mmseg::twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="tiny",
        drop_path_rate=0.2,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
