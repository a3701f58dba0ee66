# Training and sliding windows at 512; label 0 of the files is "unlabelled".
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="ADE20KDataset",
        data_root="data/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KDataset",
        data_root="data/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", scale=(2048, 512), keep_ratio=True),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
tta = dict(
    # The paper's: whole images at ratios of the base scale (mmseg 0.x's MultiScaleFlipAug).
    paper=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(type="Resize", scale=(int(2048 * r), int(512 * r)), keep_ratio=True)
                        for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
                    ],
                    [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
                    [dict(type="LoadAnnotations", reduce_zero_label=True)],
                    [dict(type="PackSegInputs")],
                ],
            ),
        ],
        test_cfg=dict(mode="whole"),
    ),
    # mmseg 1.x's: sliding windows at ratios of the original image.
    mmseg=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(type="Resize", scale_factor=r, keep_ratio=True)
                        for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
                    ],
                    [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
                    [dict(type="LoadAnnotations", reduce_zero_label=True)],
                    [dict(type="PackSegInputs")],
                ],
            ),
        ],
    ),
)
