"""Annotations of boxes and masks as people have them: COCO, YOLO and Pascal VOC."""
