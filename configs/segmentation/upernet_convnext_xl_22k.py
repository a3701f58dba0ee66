"""UperNet, ConvNeXt-XL (22K), ADE20K at 640, 160k steps. Published: 53.6 mIoU, 54.0 multi-scale."""

_base_ = "./upernet_convnext_b_22k.py"

model = dict(
    backbone=dict(
        arch="xlarge",
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth"
        ),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=0.00008))
