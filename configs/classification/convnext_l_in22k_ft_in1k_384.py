"""ConvNeXt-L (22K), ImageNet-1k at 384, 30 epochs. Published: 87.5 top-1."""

_base_ = [
    "../_base_/models/classifier_finetune.py",
    "../_base_/datasets/imagenet1k_384.py",
    "../_base_/schedules/imagenet1k_finetune_30e.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    network=dict(
        arch="large",
        drop_path_rate=0.3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth",
            replace_head=True,
        ),
    )
)
