"""ResNet-50, ImageNet-1k at 224, 90 epochs by torchvision's recipe. Published: 76.13 top-1."""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet1k_224_plain.py",
    "../_base_/schedules/imagenet1k_90e.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    label_smoothing=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    network=dict(type="ModernizedResNetClassifier", regime="resnet50", step="resnet"),
)
