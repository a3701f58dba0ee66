"""UperNet, Swin-T, ADE20K at 512, 160k steps. Published: 45.8 mIoU multi-scale."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_160k_swin.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        type="SwinTransformer",
        drop_path_rate=0.3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/"
            "swin_tiny_patch4_window7_224_20220317-1cdeb081.pth",
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
