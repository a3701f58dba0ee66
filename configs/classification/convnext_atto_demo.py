"""ConvNeXt-atto from scratch, drawn shapes at 64, minutes on a CPU. Not published."""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/demo_classes.py",
    "../_base_/schedules/demo.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    num_classes=4,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    network=dict(
        arch="atto",
        layer_scale_init_value=1.0,
        # At this width the official deviation, 0.02, leaves GELU nearly linear for many epochs.
        init_cfg=dict(type="Kaiming", layer=["Conv2d", "Linear"], mode="fan_in"),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
default_hooks = dict(checkpoint=dict(interval=9))
