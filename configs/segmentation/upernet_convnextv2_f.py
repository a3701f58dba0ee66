"""UperNet, ConvNeXt V2-F, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="femto",
        drop_path_rate=0.1,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_femto_1k_224_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
