"""Any step of the roadmap, narrow, drawn shapes at 64, minutes on a CPU. Not published."""

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
        type="ModernizedResNetClassifier",
        regime="resnet50",
        step="separate_downsampling",
        design=dict(depths=(2, 2, 6, 2), width=32),
    ),
)
default_hooks = dict(checkpoint=dict(interval=1))
