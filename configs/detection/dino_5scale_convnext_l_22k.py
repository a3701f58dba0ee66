"""DINO-DETR, 5 scales, ConvNeXt-L (22K, 384), COCO, 12 epochs. Not published."""

# The fifth scale is that of mmdet's DINO with Swin-L.
_base_ = "./dino_convnext_l_22k.py"

model = dict(
    num_feature_levels=5,
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768, 1536], num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
