"""Image classification, as the rest of the suite knows it."""

import re

from backbones.openmmlab.tasks import Metric, Task, register_task

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
    )
)
