"""DINO-DETR, 4 scales, ConvNeXt-L (22K, 384), COCO, 12 epochs. Published by detrex: 55.5 box AP."""

# detrex: lr 1e-4, a tenth of it for the backbone, no drop path, and these position embeddings.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="large",
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_1k_384.pth",
        ),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
    positional_encoding=dict(offset=-0.5, temperature=10000),
)
