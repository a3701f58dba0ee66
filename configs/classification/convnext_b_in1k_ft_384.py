"""ConvNeXt-B, ImageNet-1k at 384, 30 epochs from 224. Published: 85.1 top-1."""

_base_ = [
    "../_base_/models/classifier_finetune.py",
    "../_base_/datasets/imagenet1k_384.py",
    "../_base_/schedules/imagenet1k_finetune_30e.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    network=dict(
        arch="base",
        drop_path_rate=0.8,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth",
        ),
    )
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
