"""Faster R-CNN, ConvNeXt-T, COCO, 36 epochs. Not published."""

# Mask R-CNN's recipe (arXiv:2201.03545, Table 3) without its mask head.
_base_ = "./mask_rcnn_convnext_t.py"

model = dict(roi_head=dict(mask_roi_extractor=None, mask_head=None))
val_evaluator = dict(metric=["bbox"])
test_evaluator = dict(metric=["bbox"])
