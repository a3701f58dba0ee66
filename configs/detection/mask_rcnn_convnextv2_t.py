"""Mask R-CNN with LSJ, ConvNeXt V2-T, COCO, 36 epochs. Not published."""

_base_ = "./mask_rcnn_convnextv2_b.py"

model = dict(
    backbone=dict(
        arch="tiny",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_tiny_1k_224_fcmae.pt"
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
