"""Mask R-CNN, roadmap step patchify, COCO, 36 epochs. Not published."""

_base_ = "./mask_rcnn_roadmap.py"

model = dict(backbone=dict(step="patchify"))
