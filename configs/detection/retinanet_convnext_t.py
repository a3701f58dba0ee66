"""RetinaNet, ConvNeXt-T, COCO, 12 epochs. Not published."""

# mmdet's schedule for RetinaNet with PVT, whose optimizer is AdamW too; drop path as in Mask R-CNN.
_base_ = "mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="tiny",
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
