"""UperNet, ConvNeXt V2-H, ADE20K at 512, 160k steps. Published: 55.0 mIoU multi-scale."""

_base_ = "./upernet_convnextv2_t.py"

model = dict(
    backbone=dict(
        arch="huge",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_huge_1k_224_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408),
)
