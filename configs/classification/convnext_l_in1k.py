"""ConvNeXt-L, ImageNet-1k at 224, 300 epochs. Published: 84.3 top-1."""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet1k_224.py",
    "../_base_/schedules/imagenet1k_300e.py",
    "../_base_/classification_runtime.py",
]

model = dict(network=dict(arch="large", drop_path_rate=0.5))
custom_hooks = [dict(type="WeightAverageHook", decay=0.9999), dict(type="InterruptHook")]
