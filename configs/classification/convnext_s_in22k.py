"""ConvNeXt-S, ImageNet-22k at 224, 90 epochs. Not published."""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet22k.py",
    "../_base_/schedules/imagenet22k_90e.py",
    "../_base_/classification_runtime.py",
]

model = dict(num_classes=21841, network=dict(arch="small", drop_path_rate=0.0))
