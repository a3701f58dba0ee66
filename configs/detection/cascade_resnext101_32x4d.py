"""Cascade Mask R-CNN, ResNeXt-101 32x4d, COCO, 36 epochs. Published: 48.1 box AP, 41.6 mask AP."""

_base_ = "./cascade_resnet50.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=32,
        base_width=4,
        init_cfg=dict(
            checkpoint="https://mmassets.onedl.ai/pretrain/third_party/"
            "resnext101_32x4d-a5af3160.pth"
        ),
    )
)
