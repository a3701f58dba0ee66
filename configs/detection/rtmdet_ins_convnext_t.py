"""RTMDet-Ins-L, ConvNeXt-T, COCO, 300 epochs. Not published."""

# RTMDet-Ins' own schedule; drop path as in Mask R-CNN.
_base_ = "../_base_/models/rtmdet_ins.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="tiny",
        out_indices=(1, 2, 3),
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        pad_input=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
