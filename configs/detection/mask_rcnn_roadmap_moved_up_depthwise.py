"""Mask R-CNN, roadmap step moved_up_depthwise, COCO, 36 epochs. Not published."""

_base_ = "./mask_rcnn_roadmap.py"

model = dict(backbone=dict(step="moved_up_depthwise"))
