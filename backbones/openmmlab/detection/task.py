"""Object detection and instance segmentation, as the rest of the suite knows them."""

import re

from backbones.openmmlab.tasks import Metric, Task, register_task

from .figures import detection_figures


def _average_precision(kind: str, name: str, **said) -> tuple[Metric, ...]:
    key = f"coco/{kind}_mAP"
    sizes = {f"{key}_{size[0]}": size for size in ("small", "medium", "large")}
    return (
        Metric(key, f"{name} AP", main=True, sizes=tuple(sizes), **said),
        Metric(f"{key}_50", f"{name} AP50"),
        Metric(f"{key}_75", f"{name} AP75"),
        *(Metric(of_size, f"{name} AP {size}") for of_size, size in sizes.items()),
    )


DETECTION = register_task(
    Task(
        name="detection",
        scope="mmdet",
        pipeline_tag="object-detection",
        metrics=(
            *_average_precision("bbox", "box"),
            *_average_precision("segm", "mask"),
            *_average_precision("boundary", "boundary", outline_of="coco/segm_mAP"),
        ),
        compiled_parts=("backbone", "neck", "rpn_head"),
        compiled_region_parts=("roi_head.bbox_head", "roi_head.mask_head"),
        class_layers=re.compile(r"(?:^|\.)(?:fc_cls|fc_reg|conv_logits)$"),
        figures=detection_figures,
    )
)
