"""UperNet, Swin-L (22K), ADE20K at 640, 160k steps. Published: 53.5 mIoU multi-scale."""

_base_ = "./upernet_swin_b_22k.py"

model = dict(
    backbone=dict(
        embed_dims=192,
        num_heads=[6, 12, 24, 48],
        init_cfg=dict(
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/"
            "swin_large_patch4_window7_224_22k_20220412-aeecf2aa.pth"
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
