"""Mask2Former for ADE20K's 100 things and 50 kinds of stuff: 160,000 steps of 16 crops of 640."""

# Model and optimizer are COCO's; steps and their rate are mmseg's for Mask2Former on ADE20K; sizes
# and files are mmdet's for ADE20K panoptic (`_base_/datasets/ade20k_panoptic.py` there).
_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"

crop = dict(
    type="BatchFixedSizePad", size=(640, 640), img_pad_value=0, pad_mask=True, mask_pad_value=0,
    pad_seg=True, seg_pad_value=255,
)  # fmt: skip
counts = dict(num_things_classes=100, num_stuff_classes=50)
model = dict(
    data_preprocessor=dict(batch_augments=[crop]),
    panoptic_head=dict(loss_cls=dict(class_weight=[1.0] * 150 + [0.1]), **counts),
    panoptic_fusion_head=counts,
)
train_dataloader = dict(
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root="data/ADEChallengeData2016/",
        ann_file="ade20k_panoptic_train.json",
        data_prefix=dict(img="images/training/", seg="ade20k_panoptic_train/"),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="RandomResize", scale=(2560, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(640, 640), crop_type="absolute", recompute_bbox=True,
                 allow_negative_crop=True),
            dict(type="PackDetInputs"),
        ],
    ),
)  # fmt: skip
val_dataloader = test_dataloader = dict(
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root="data/ADEChallengeData2016/",
        ann_file="ade20k_panoptic_val.json",
        data_prefix=dict(img="images/validation/", seg="ade20k_panoptic_val/"),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="Resize", scale=(2560, 640), keep_ratio=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
val_evaluator = test_evaluator = [
    dict(
        type="CocoPanopticMetric",
        ann_file="data/ADEChallengeData2016/ade20k_panoptic_val.json",
        seg_prefix="data/ADEChallengeData2016/ade20k_panoptic_val/",
    ),
]
param_scheduler = [
    dict(type="PolyLR", eta_min=0, power=0.9, begin=0, end=160000, by_epoch=False),
]
train_cfg = dict(max_iters=160000, val_interval=5000, dynamic_intervals=[(155001, 160000)])
