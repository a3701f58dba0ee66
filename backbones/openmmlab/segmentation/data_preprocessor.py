"""Normalise images of any number of bands for mmseg's segmentors."""

from mmengine.registry import MODELS
from mmseg.models import SegDataPreProcessor

from backbones.openmmlab.data.band_normalisation import BandNormalisation


@MODELS.register_module()
class BandsSegDataPreProcessor(BandNormalisation, SegDataPreProcessor):
    """Normalise each band by its own mean and deviation; see `BandNormalisation`."""
