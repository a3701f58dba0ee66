"""Crops and flips alone, 32 images for each process; evaluated as imagenet1k_224.py is."""

_base_ = "./imagenet1k_224.py"

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(
                type="TimmAugment",
                input_size=224,
                auto_augment=None,
                color_jitter=0.0,
                re_prob=0.0,
                interpolation="bilinear",
            ),
        ]
    ),
)
