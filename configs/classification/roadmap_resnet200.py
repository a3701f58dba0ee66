"""Roadmap, ResNet-200 to ConvNeXt-B, ImageNet-1k at 224, 300 epochs. Published: 83.60 top-1."""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet1k_224.py",
    "../_base_/schedules/imagenet1k_300e.py",
    "../_base_/classification_runtime.py",
]

# Without an average of the weights, which "severely hurts models with BatchNorm" (paper, A.1).
model = dict(
    network=dict(
        type="ModernizedResNetClassifier",
        regime="resnet200",
        step="separate_downsampling",
        drop_path_rate=0.5,
    )
)
