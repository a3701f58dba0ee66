"""Mask R-CNN, ConvNeXt-T, COCO, 12 epochs. Not published."""

_base_ = "./mask_rcnn_convnext_t.py"

train_cfg = dict(max_epochs=12)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
