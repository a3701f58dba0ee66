# Drawn shapes, one to a picture, from `tools/prepare_data.py demo`.
train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolders",
        data_root="data/demo/",
        split="classes/train",
        classes=("circle", "square", "triangle", "star"),
        pipeline=[
            dict(type="LoadRGB"),
            dict(
                type="TimmAugment",
                input_size=64,
                auto_augment=None,
                re_prob=0.0,
                # Any hue: the shapes favour one each, and form would not be learnt.
                color_jitter=(0.0, 0.0, 0.0, 0.5),
                scale=(0.8, 1.0),
                vflip=0.5,
            ),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolders",
        data_root="data/demo/",
        split="classes/val",
        classes=("circle", "square", "triangle", "star"),
        pipeline=[dict(type="LoadRGB"), dict(type="ResizeForTest", input_size=64)],
    ),
)
val_evaluator = test_evaluator = dict(type="TopAccuracy", topk=(1, 2))
