"""UperNet, ConvNeXt-B (22K), ADE20K at 640, 160k steps. Published: 52.6 mIoU, 53.1 multi-scale."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_640.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="ConvNeXt",
        arch="base",
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)
