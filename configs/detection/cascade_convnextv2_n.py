"""Cascade Mask R-CNN, ConvNeXt V2-N, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="nano",
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_nano_1k_224_fcmae.pt"
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
