"""Normalise images of any number of bands, in the data preprocessors of mmdet and mmseg."""

from collections.abc import Sequence

import torch
from mmengine.model import ImgDataPreprocessor


class BandNormalisation(ImgDataPreprocessor):
    """Normalise each band by its own mean and deviation; mmengine's takes one or three of them.

    A class names it before its library's data preprocessor among its bases.

    Args:
        mean, std: of each band.
        kwargs: as in the library's data preprocessor.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        self._enable_normalize = True
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)
