"""UperNet, ConvNeXt V2-N, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="nano",
        drop_path_rate=0.1,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_nano_1k_224_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
