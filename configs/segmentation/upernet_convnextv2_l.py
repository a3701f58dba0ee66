"""UperNet, ConvNeXt V2-L, ADE20K at 512, 160k steps. Published: 53.7 mIoU multi-scale."""

_base_ = "./upernet_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="large",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_large_1k_224_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
