"""Normalise images of any number of bands for mmseg's segmentors."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from mmseg.models import SegDataPreProcessor


@MODELS.register_module()
class BandsSegDataPreProcessor(SegDataPreProcessor):
    """Normalise each band by its own mean and deviation; mmengine's takes one or three of them.

    Args:
        mean, std: of each band.
        kwargs: as in SegDataPreProcessor.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        self._enable_normalize = True
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)
