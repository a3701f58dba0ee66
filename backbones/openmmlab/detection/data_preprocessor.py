"""Normalise images of any number of bands for mmdet's detectors."""

from mmdet.models import DetDataPreprocessor
from mmengine.registry import MODELS

from backbones.openmmlab.data.band_normalisation import BandNormalisation


@MODELS.register_module()
class BandsDetDataPreprocessor(BandNormalisation, DetDataPreprocessor):
    """Normalise each band by its own mean and deviation; see `BandNormalisation`."""
