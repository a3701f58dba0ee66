"""ResNet-200, ImageNet-1k at 224, 90 epochs by torchvision's recipe. Published: 78.20 top-1."""

_base_ = "./roadmap_resnet50_torchvision.py"

model = dict(network=dict(regime="resnet200"))
