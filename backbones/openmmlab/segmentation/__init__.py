"""What a segmentation config needs registered: mmseg, our loading, heads and a label check."""

from backbones.openmmlab.registration import register

register("mmseg")

from backbones.openmmlab.data import loading
from backbones.openmmlab.evaluation import corruption

from . import boundary, heads, label_range, pairs, sliding_window

__all__ = [
    "boundary",
    "corruption",
    "heads",
    "label_range",
    "loading",
    "pairs",
    "sliding_window",
]
