"""Cascade Mask R-CNN, ConvNeXt V2-L, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_l_22k.py"

model = dict(
    backbone=dict(
        use_grn=True,
        layer_scale_init_value=0.0,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_large_1k_224_fcmae.pt"
        ),
    ),
)
