"""Mask R-CNN, roadmap step separate_downsampling, COCO, 36 epochs. Not published."""

_base_ = "./mask_rcnn_roadmap.py"

model = dict(backbone=dict(step="separate_downsampling"))
