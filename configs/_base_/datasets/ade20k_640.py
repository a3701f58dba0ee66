"""ADE20K at 640: crops of 640x640 for training, images within 2560x640 for testing."""

_base_ = "./ade20k.py"

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="RandomResize", scale=(2560, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(640, 640), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", scale=(2560, 640), keep_ratio=True),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="PackSegInputs"),
        ]
    )
)
test_dataloader = val_dataloader

tta = dict(
    paper=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(
                            type="Resize",
                            scale=(int(2560 * ratio), int(640 * ratio)),
                            keep_ratio=True,
                        )
                        for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
                    ],
                    [
                        dict(type="RandomFlip", prob=prob, direction="horizontal")
                        for prob in (0.0, 1.0)
                    ],
                    [dict(type="LoadAnnotations", reduce_zero_label=True)],
                    [dict(type="PackSegInputs")],
                ],
            ),
        ]
    )
)
