"""Mask R-CNN on any step from ResNet to ConvNeXt, COCO, 36 epochs. Not published."""

_base_ = [
    "../_base_/models/mask_rcnn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/detection_runtime.py",
]

# Weights are those of tools/roadmap.py --train. Its recipe is ConvNeXt-T's for every step.
model = dict(
    backbone=dict(
        type="ModernizedResNet",
        regime="resnet50",
        step="separate_downsampling",
        drop_path_rate=0.4,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="work_dirs/roadmap/{regime}/{step}.pth"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=0.0001), paramwise_cfg=dict(decay_rate=0.95))
