"""Read annotations of boxes and masks: COCO, YOLO and Pascal VOC."""
