"""Mask2Former, ConvNeXt-T, ADE20K at 512, 160k steps. Not published."""

# Mask2Former's own schedule; drop path as in mmseg's with Swin-T.
_base_ = "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"

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
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
