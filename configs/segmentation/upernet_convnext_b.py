"""UperNet, ConvNeXt-B, ADE20K at 512, 160k steps. Published: 49.1 mIoU, 49.9 multi-scale."""

_base_ = "./upernet_convnext_t.py"

model = dict(
    backbone=dict(
        arch="base",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth"
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
