"""Describe semantic segmentation to the rest of the suite."""

import re

from mmseg.models.segmentors import BaseSegmentor

from backbones.openmmlab.tasks import (
    Export,
    Metric,
    PublicDataset,
    ReportLayout,
    Task,
    register_task,
)

from .complexity import default_size, run_parts
from .export_comparison import SegmentorComparison, export_settings, exported_sample
from .export_graph import SegmentorGraph
from .figures import segmentation_figures
from .latency import latency_knobs
from .step_loss import step_loss

SEGMENTATION = register_task(
    Task(
        name="segmentation",
        scope="mmseg",
        pipeline_tag="image-segmentation",
        metrics=(
            Metric("mIoU", "mIoU", best=100.0, main=True),
            Metric("boundary_mIoU", "boundary mIoU", best=100.0, main=True, outline_of="mIoU"),
            Metric("mAcc", "mean recall", best=100.0),
            Metric("aAcc", "pixel accuracy", best=100.0),
        ),
        compiled_parts=("backbone", "neck", "decode_head", "auxiliary_head"),
        class_layers=re.compile(
            r"(?:^|\.)(?:\w+_seg|cls_embed|se_layer|decode_head\.1\.fcs\.\d+\.conv)$"
        ),
        figures=segmentation_figures,
        report_layout=ReportLayout(
            class_scores=("IoU", "boundary IoU", "recall", "precision"),
            class_count="pixels",
            per_cent=True,
            class_note="All values are in per cent, computed over all pixels of the data set.",
            confusion_unit="pixels",
            confusion_note="All labelled pixels are counted.",
            image_score="mIoU",
            image_note="mIoU is the mean over the classes in the ground truth of the image.",
        ),
        parts=dict(
            backbone=("backbone",),
            neck=("neck",),
            decode_head=("decode_head",),
            auxiliary_head=("auxiliary_head",),
        ),
        owns=lambda model: isinstance(model, BaseSegmentor),
        default_size=default_size,
        latency_knobs=latency_knobs,
        run_parts=run_parts,
        step_loss=step_loss,
        # 0.7 to 0.95 and 0.8 to 1.0 were measured for the demo segmentor and UperNet-T.
        heap_overhead=0.85,
        public_datasets=(
            PublicDataset("ADE20KDataset", "ADE20K", "scene_parse_150", "ade20k", "mIoU"),
        ),
        export=Export(
            graph=SegmentorGraph,
            comparison=SegmentorComparison,
            settings=export_settings,
            sample=exported_sample,
            float_layers=re.compile(r"(?:^|\.)conv_seg$"),
            has_logits=True,
        ),
    )
)
