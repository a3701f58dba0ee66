"""What plugs the backbones into OpenMMLab.

Importing it registers the layer-decay constructor and puts torchvision's operators in place of
mmcv's compiled ones where those are missing. `detection` and `segmentation`, which configs name in
`custom_imports`, import mmdet and mmseg.
"""

from . import mmcv_ops
from .training import layer_decay

mmcv_ops.install()

__all__ = ["layer_decay", "mmcv_ops"]
