"""Mask R-CNN with LSJ, ConvNeXt V2-A, COCO, 36 epochs. Not published."""

_base_ = "./mask_rcnn_convnextv2_b.py"

model = dict(
    backbone=dict(
        arch="atto",
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt"
        ),
    ),
    neck=dict(in_channels=[40, 80, 160, 320]),
)
