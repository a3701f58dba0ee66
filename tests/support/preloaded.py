"""Import what the tools import, in the process that `forked` forks from."""

import backbones.openmmlab.classification
import backbones.openmmlab.detection
import backbones.openmmlab.doctor.checks
import backbones.openmmlab.report
import backbones.openmmlab.segmentation
import backbones.openmmlab.training.progress
import backbones.openmmlab.training.runner  # noqa: F401
