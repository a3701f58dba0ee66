"""Cascade Mask R-CNN with group norms, ConvNeXt-T, COCO, 36 epochs. Not published."""

_base_ = "./cascade_convnext_t.py"

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
heads = [{**head, "norm_cfg": norm_cfg} for head in _base_.model.roi_head.bbox_head]
model = dict(roi_head=dict(bbox_head=heads))
del heads
