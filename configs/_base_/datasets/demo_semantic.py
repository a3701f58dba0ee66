# Drawn shapes and their grounds from `tools/prepare_data.py demo`, in ADE20K's layout.
_base_ = "./ade20k.py"

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        type="BaseSegDataset",
        data_root="data/demo/",
        reduce_zero_label=True,
        seg_map_suffix=".png",
        metainfo=dict(
            classes=(
                "circle", "square", "triangle", "star", "gradient", "noise", "stripes", "checks",
            ),
            palette=[
                [230, 80, 60], [60, 110, 230], [250, 180, 40], [180, 60, 200],
                [170, 200, 220], [150, 150, 150], [110, 180, 140], [210, 190, 160],
            ],
        ),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="RandomResize", scale=(160, 160), ratio_range=(0.8, 1.25), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(128, 128), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs"),
        ],
    ),
)  # fmt: skip
val_dataloader = test_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type="BaseSegDataset",
        data_root="data/demo/",
        reduce_zero_label=True,
        seg_map_suffix=".png",
        metainfo=train_dataloader["dataset"]["metainfo"],
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", scale=(160, 160), keep_ratio=True),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="PackSegInputs"),
        ],
    ),
)
