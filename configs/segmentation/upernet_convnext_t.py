"""UperNet, ConvNeXt-T, ADE20K at 512, 160k steps. Published: 46.0 mIoU, 46.7 multi-scale."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        type="ConvNeXt",
        arch="tiny",
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
