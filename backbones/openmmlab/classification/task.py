"""Describe image classification to the rest of the suite."""

import re

from backbones.openmmlab.tasks import Export, Metric, Task, register_task

from .complexity import default_size, run_parts, step_loss
from .export import (
    ClassifierComparison,
    ClassifierGraph,
    blank_samples,
    exported_sample,
)
from .model import ImageClassifier

CLASSIFICATION = register_task(
    Task(
        name="classification",
        scope="mmengine",
        pipeline_tag="image-classification",
        metrics=(
            Metric("top1", "top-1", best=100.0, main=True),
            Metric("top5", "top-5", best=100.0),
        ),
        compiled_parts=("network",),
        class_layers=re.compile(r"(?:^|\.)head$"),
        parts=dict(network=("network",)),
        owns=lambda model: isinstance(model, ImageClassifier),
        default_size=default_size,
        run_parts=run_parts,
        step_loss=step_loss,
        heap_overhead=0.5,  # between those of the other tasks: not measured
        backbone="network",
        export=Export(
            graph=lambda preprocessing, model, logits: ClassifierGraph(preprocessing, model),
            comparison=lambda model, logits: ClassifierComparison(model),
            settings=lambda model: {},
            sample=exported_sample,
            samples=blank_samples,
            float_layers=re.compile(r"(?:^|\.)(?:head|fc)$"),  # of ConvNeXts and of ResNets
        ),
    )
)
