"""UperNet, ConvNeXt V2-H (22K), ADE20K at 640, 160k steps. Published: 57.0 mIoU multi-scale."""

_base_ = "./upernet_convnext_b_22k.py"

# The paper does not say whether it started from the weights fine-tuned at 384 or at 512.
model = dict(
    backbone=dict(
        arch="huge",
        use_grn=True,
        layer_scale_init_value=0.0,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_huge_22k_512_ema.pt"
        ),
    ),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408),
)
