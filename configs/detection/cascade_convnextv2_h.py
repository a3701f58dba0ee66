"""Cascade Mask R-CNN, ConvNeXt V2-H, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnextv2_l.py"

model = dict(
    backbone=dict(
        arch="huge",
        drop_path_rate=0.8,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_huge_1k_224_fcmae.pt"
        ),
    ),
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
