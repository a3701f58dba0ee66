"""UperNet, Swin-B (22K), ADE20K at 640, 160k steps. Published: 51.7 mIoU multi-scale."""

_base_ = [
    "../_base_/models/upernet_640.py",
    "../_base_/datasets/ade20k_640.py",
    "../_base_/schedules/ade20k_160k_swin.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        type="SwinTransformer",
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/"
            "swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth",
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
