"""Describe object detection and instance segmentation to the rest of the suite."""

import re

from mmdet.models.detectors import BaseDetector

from backbones.openmmlab.tasks import (
    Export,
    Metric,
    PublicDataset,
    ReportLayout,
    Task,
    register_task,
)

from .complexity import default_size, run_parts
from .export_comparison import DetectorComparison, export_settings, exported_sample
from .export_graph import DetectorGraph
from .figures import detection_figures
from .latency import latency_knobs
from .step_loss import step_loss


def _average_precision(kind: str, name: str, outline_of: str | None = None) -> tuple[Metric, ...]:
    key = f"coco/{kind}_mAP"
    sizes = {f"{key}_{size[0]}": size for size in ("small", "medium", "large")}
    return (
        Metric(key, f"{name} AP", main=True, sizes=tuple(sizes), outline_of=outline_of),
        Metric(f"{key}_50", f"{name} AP50"),
        Metric(f"{key}_75", f"{name} AP75"),
        *(Metric(of_size, f"{name} AP {size}") for of_size, size in sizes.items()),
    )


def _panoptic_quality() -> tuple[Metric, ...]:
    """Return what mmdet's CocoPanopticMetric gives: of all classes, of things and of stuff."""
    kinds = {"": "", "_th": " things", "_st": " stuff"}
    return tuple(
        Metric(f"coco_panoptic/{key}{suffix}", f"{key}{kind}", 100.0, main=key == "PQ" and not kind)
        for key in ("PQ", "SQ", "RQ")
        for suffix, kind in kinds.items()
    )


# Layers with rows for each class: of RoI heads, one-stage detectors, DETRs and Mask2Former. An RPN
# and the buckets of SABL tell objects from background.
CLASS_LAYERS = re.compile(
    r"^(?!rpn_head\.)(?:.+\.)?(?:(?!rpn_|retina_bbox_|fc_reg_)\w+_cls|"
    r"roi_head\.bbox_head(?:\.\d+)?\.fc_reg|conv_logits|fc_logits|fc_mask_iou|glbctx_head\.fc|"
    r"point_head\.fcs\.\d+\.conv|cls_score|reppoints_cls_out|convs_pred|segm_conv|center_prior|"
    r"heatmap_head\.2|(?:aux_)?cls_branches|cls_embed|label_embedding)(?:\.\d+)*$"
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
            *_panoptic_quality(),
        ),
        compiled_parts=("backbone", "neck", "rpn_head"),
        compiled_region_parts=("roi_head.bbox_head", "roi_head.mask_head"),
        class_layers=CLASS_LAYERS,
        figures=detection_figures,
        report_layout=ReportLayout(
            class_scores=(
                *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
                *("PQ", "SQ", "RQ"),
            ),
            class_count="objects",
            confusion_unit="objects",
            confusion_note="Only detections with a score of 0.3 or more are counted. Each is "
            "matched to the object that it overlaps with an IoU of 0.5 or more, first within its "
            "class, then across classes. An object predicted as nothing is a false negative; a "
            "prediction where the truth is nothing is a false positive.",
            background=True,
            image_score="F1",
            image_note="F1 is computed from the detections with a score of 0.3 or more at an IoU "
            "of 0.5.",
        ),
        parts=dict(
            backbone=("backbone",),
            neck=("neck",),
            transformer=("encoder", "decoder"),
            rpn_head=("rpn_head",),
            semantic_head=("semantic_head",),
            shared_head=("roi_head.shared_head",),
            bbox_head=("bbox_head", "roi_head.bbox_head"),
            grid_head=("roi_head.grid_head",),
            mask_head=("mask_head", "roi_head.mask_head"),
            panoptic_head=("panoptic_head",),
        ),
        owns=lambda model: isinstance(model, BaseDetector),
        default_size=default_size,
        latency_knobs=latency_knobs,
        run_parts=run_parts,
        step_loss=step_loss,
        # 0.38 and 0.15 were measured for the demo detector and Cascade-T.
        heap_overhead=0.3,
        array_loader="mmdet.LoadImageFromNDArray",
        public_datasets=(PublicDataset("CocoDataset", "COCO", "coco", "coco", "coco/bbox_mAP"),),
        export=Export(
            graph=lambda preprocessing, model, logits: DetectorGraph(preprocessing, model),
            comparison=lambda model, logits: DetectorComparison(model),
            settings=export_settings,
            sample=exported_sample,
            float_layers=re.compile(r"(?:^|\.)(?:rpn_cls|rpn_reg|fc_cls|fc_reg|conv_logits)$"),
        ),
    )
)
