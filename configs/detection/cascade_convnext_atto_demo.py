"""Cascade Mask R-CNN, ConvNeXt-atto from scratch, drawn shapes, 9 epochs. Not published."""

_base_ = [
    "../_base_/models/cascade_mask_rcnn.py",
    "../_base_/datasets/demo_instance.py",
    "../_base_/schedules/demo.py",
    "../_base_/detection_runtime.py",
]

narrow = dict(in_channels=48, conv_out_channels=48, num_classes=4)
box = dict(narrow, num_shared_convs=1, fc_out_channels=256)
roi = dict(out_channels=48, roi_layer=dict(sampling_ratio=2))
heads = [{**head, **box} for head in _base_.model.roi_head.bbox_head]
rcnn = [{**stage, "sampler": {**stage.sampler, "num": 32}} for stage in _base_.model.train_cfg.rcnn]
model = dict(
    backbone=dict(type="ConvNeXt", arch="atto", layer_scale_init_value=1.0),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=48),
    rpn_head=dict(in_channels=48, feat_channels=48),
    roi_head=dict(
        bbox_roi_extractor=roi, bbox_head=heads, mask_roi_extractor=roi, mask_head=narrow
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=rcnn),
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
del narrow, box, roi, heads, rcnn
