"""UperNet, ConvNeXt-S, ADE20K at 512, 160k steps. Published: 48.7 mIoU, 49.6 multi-scale."""

_base_ = "./upernet_convnext_t.py"

model = dict(
    backbone=dict(
        arch="small",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_small_1k_224.pth"
        ),
    ),
)
