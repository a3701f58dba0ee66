# As at 224; in evaluation the whole image becomes 384x384.
_base_ = "./imagenet1k_224.py"

train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(
                type="TimmAugment",
                input_size=384,
                auto_augment="rand-m9-mstd0.5-inc1",
                re_prob=0.25,
            ),
        ]
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=24,
    dataset=dict(pipeline=[dict(type="LoadRGB"), dict(type="ResizeForTest", input_size=384)]),
)
