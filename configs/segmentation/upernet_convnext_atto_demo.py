"""UperNet, ConvNeXt-atto from scratch, drawn shapes, minutes on a CPU. Not published."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/demo_semantic.py",
    "../_base_/schedules/demo_iterations.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(type="ConvNeXt", arch="atto", layer_scale_init_value=1.0),
    decode_head=dict(in_channels=[40, 80, 160, 320], channels=64, num_classes=8),
    auxiliary_head=dict(in_channels=160, channels=64, num_classes=8),
    test_cfg=dict(mode="slide", crop_size=(128, 128), stride=(85, 85)),
)
default_hooks = dict(checkpoint=dict(interval=1000))
