# Drawn shapes from `tools/prepare_data.py demo`, in COCO's layout.
_base_ = "./coco_instance.py"

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root="data/demo/",
        metainfo=dict(classes=("circle", "square", "triangle", "star")),
        filter_cfg=dict(min_size=1),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomFlip", prob=0.5, direction=["horizontal", "vertical", "diagonal"]),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    dataset=dict(
        data_root="data/demo/",
        metainfo=dict(classes=("circle", "square", "triangle", "star")),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", scale=(160, 160), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
val_evaluator = test_evaluator = dict(ann_file="data/demo/annotations/instances_val2017.json")
tta = dict(
    flip=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [
                        dict(type="Resize", scale=scale, keep_ratio=True)
                        for scale in [(160, 160)]
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
                        for scale in [(120, 120), (160, 160), (200, 200)]
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
