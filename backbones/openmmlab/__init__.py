"""Plug the backbones into OpenMMLab.

Importing it registers the layer-decay constructor, puts torchvision's operators in place of mmcv's
compiled ones and a PQ in place of panopticapi's where those are missing, and keeps mmpretrain
importable beside transformers 5.
`detection` and `segmentation`, which configs name in `custom_imports`, import mmdet and mmseg.
"""

from . import mmcv_ops, panoptic_quality
from .registration import switch_off_multimodal
from .training import layer_decay

mmcv_ops.install()
panoptic_quality.install()
switch_off_multimodal()

__all__ = ["layer_decay", "mmcv_ops"]
