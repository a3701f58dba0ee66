"""UperNet on any step from ResNet to ConvNeXt, ADE20K at 512, 160k steps. Not published."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/segmentation_runtime.py",
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
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
