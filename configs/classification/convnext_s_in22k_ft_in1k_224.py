"""ConvNeXt-S (22K), ImageNet-1k at 224, 30 epochs. Published: 84.6 top-1."""

_base_ = [
    "../_base_/models/classifier_finetune.py",
    "../_base_/datasets/imagenet1k_224.py",
    "../_base_/schedules/imagenet1k_finetune_30e.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    network=dict(
        arch="small",
        drop_path_rate=0.1,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_small_22k_224.pth",
            replace_head=True,
        ),
    )
)
train_dataloader = dict(batch_size=32)
