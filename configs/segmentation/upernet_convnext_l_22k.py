"""UperNet, ConvNeXt-L (22K), ADE20K at 640, 160k steps. Published: 53.2 mIoU, 53.7 multi-scale."""

_base_ = "./upernet_convnext_b_22k.py"

model = dict(
    backbone=dict(
        arch="large",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth"
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
