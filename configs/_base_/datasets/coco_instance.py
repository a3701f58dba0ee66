# The augmentation is DETR's: one of eleven short sides, half the time after a crop.
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="CocoDataset",
        data_root="data/coco/",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="RandomChoice",
                transforms=[
                    [
                        dict(
                            type="RandomChoiceResize",
                            scales=[(side, 1333) for side in range(480, 801, 32)],
                            keep_ratio=True,
                        )
                    ],
                    [
                        dict(
                            type="RandomChoiceResize",
                            scales=[(400, 1333), (500, 1333), (600, 1333)],
                            keep_ratio=True,
                        ),
                        dict(
                            type="RandomCrop",
                            crop_type="absolute_range",
                            crop_size=(384, 600),
                            allow_negative_crop=True,
                        ),
                        dict(
                            type="RandomChoiceResize",
                            scales=[(side, 1333) for side in range(480, 801, 32)],
                            keep_ratio=True,
                        ),
                    ],
                ],
            ),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root="data/coco/",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
val_evaluator = test_evaluator = dict(
    type="CocoAP",
    ann_file="data/coco/annotations/instances_val2017.json",
    metric=["bbox", "segm"],
    format_only=False,
)
tta = dict(
    flip=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(type="Resize", scale=scale, keep_ratio=True)
                        for scale in [(1333, 800)]
                    ],
                    [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
                    [
                        dict(
                            type="PackDetInputs",
                            meta_keys=(
                                "img_id", "img_path", "ori_shape", "img_shape", "scale_factor",
                                "flip", "flip_direction",
                            ),
                        )
                    ],
                ],
            ),
        ]
    ),
    multi_scale=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(type="Resize", scale=scale, keep_ratio=True)
                        for scale in [(1000, 600), (1333, 800), (1667, 1000)]
                    ],
                    [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
                    [
                        dict(
                            type="PackDetInputs",
                            meta_keys=(
                                "img_id", "img_path", "ori_shape", "img_shape", "scale_factor",
                                "flip", "flip_direction",
                            ),
                        )
                    ],
                ],
            ),
        ]
    ),
)  # fmt: skip
