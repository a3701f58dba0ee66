"""UperNet, ConvNeXt V2-T, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnext_t.py"

# V2's paper gives sweeps for all sizes: lr 1e-4 to 3e-4, decay 0.8 or 0.9, drop path 0.1 to 0.4.
model = dict(
    backbone=dict(
        use_grn=True,
        layer_scale_init_value=0.0,
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_tiny_1k_224_ema.pt"
        ),
    ),
)
