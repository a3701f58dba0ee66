"""Normalise images of any number of bands for mmdet's detectors."""

from collections.abc import Sequence

import torch
from mmdet.models import DetDataPreprocessor
from mmengine.registry import MODELS


@MODELS.register_module()
class BandsDetDataPreprocessor(DetDataPreprocessor):
    """Normalise each band by its own mean and deviation; mmengine's takes one or three of them.

    Args:
        mean, std: of each band.
        kwargs: as in DetDataPreprocessor.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        self._enable_normalize = True
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)
