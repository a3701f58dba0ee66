"""Register what a segmentation config needs: mmseg, loading, heads and a label check."""

from backbones.openmmlab.registration import register

register("mmseg")

from backbones.openmmlab.data import in_threes, loading
from backbones.openmmlab.evaluation import corruption

from . import boundary, data_preprocessor, heads, label_range, pairs, sliding_window
from .task import SEGMENTATION

__all__ = [
    "SEGMENTATION",
    "boundary",
    "corruption",
    "data_preprocessor",
    "heads",
    "in_threes",
    "label_range",
    "loading",
    "pairs",
    "sliding_window",
]
