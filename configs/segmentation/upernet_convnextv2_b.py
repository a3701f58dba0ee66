"""UperNet, ConvNeXt V2-B, ADE20K at 512, 160k steps. Published: 52.1 mIoU multi-scale."""

_base_ = "./upernet_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="base",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_base_1k_224_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
