"""Linear head, frozen DINOv3 ConvNeXt-T, ADE20K at 512, 40k steps. Published: 42.7 mIoU."""

_base_ = [
    "../_base_/models/linear.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_linear_40k.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        type="ConvNeXt",
        arch="tiny",
        layer_scale_init_value=1.0,
        out_indices=(3,),
        frozen_stages=4,
        init_cfg=dict(type="Pretrained", checkpoint="timm:convnext_tiny.dinov3_lvd1689m"),
    ),
    decode_head=dict(in_channels=768),
)
default_hooks = dict(checkpoint=dict(interval=5000))
