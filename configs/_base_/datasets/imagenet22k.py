# All 21,841 classes; there is no validation split.
train_dataloader = dict(
    batch_size=32,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolders",
        data_root="data/imagenet22k/",
        split="train",
        classes="imagenet-22k",
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
