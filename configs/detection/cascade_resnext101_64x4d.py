"""Cascade Mask R-CNN, ResNeXt-101 64x4d, COCO, 36 epochs. Published: 48.3 box AP, 41.7 mask AP."""

_base_ = "./cascade_resnet50.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=64,
        base_width=4,
        init_cfg=dict(
            checkpoint="https://mmassets.onedl.ai/pretrain/third_party/"
            "resnext101_64x4d-ee2c6f71.pth"
        ),
    )
)
