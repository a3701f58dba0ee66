# RandAugment (9, 0.5), random erasing 0.25; the centre 224 of 256 in evaluation.
train_dataloader = dict(
    batch_size=128,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolders",
        data_root="data/imagenet/",
        split="train",
        classes="imagenet-1k",
        pipeline=[
            dict(type="LoadRGB"),
            dict(
                type="TimmAugment",
                input_size=224,
                auto_augment="rand-m9-mstd0.5-inc1",
                re_prob=0.25,
            ),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=192,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolders",
        data_root="data/imagenet/",
        split="val",
        classes="imagenet-1k",
        pipeline=[dict(type="LoadRGB"), dict(type="ResizeForTest", input_size=224)],
    ),
)
val_evaluator = test_evaluator = dict(type="TopAccuracy", topk=(1, 5))
