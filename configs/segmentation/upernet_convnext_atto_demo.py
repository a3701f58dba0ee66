"""UperNet, ConvNeXt-atto from scratch, drawn shapes, minutes on a CPU. Not published."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/demo_semantic.py",
    "../_base_/schedules/demo_iterations.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(type="ConvNeXt", arch="atto", layer_scale_init_value=1.0),
    decode_head=dict(
        in_channels=[40, 80, 160, 320],
        channels=64,
        num_classes=8,
        loss_decode=dict(class_weight=[3.0] * 4 + [1.0] * 4),  # shapes cover little
    ),
    auxiliary_head=dict(in_channels=160, channels=64, num_classes=8),
    test_cfg=dict(mode="slide", crop_size=(160, 160), stride=(106, 106)),
)
default_hooks = dict(checkpoint=dict(interval=800))
