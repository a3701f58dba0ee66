"""Provide ConvNeXt backbones for detection and segmentation with OpenMMLab.

Importing it registers the backbones and the layer-decay constructor with mmengine, and puts
torchvision's operators in place of mmcv's compiled ones where those are missing. `backbones.ops`
needs torch alone and imports without OpenMMLab; every other name then raises an ImportError.
"""

__version__ = "0.2.0"

from importlib.util import find_spec

__all__ = [
    "ARCHITECTURES",
    "ConvNeXt",
    "ConvNeXtClassifier",
    "InputError",
    "IsotropicConvNeXt",
    "IsotropicConvNeXtClassifier",
    "ModernizedResNet",
    "ModernizedResNetClassifier",
    "create_backbone",
    "fuse",
    "openmmlab",
]

if find_spec("mmengine"):
    from . import openmmlab
    from .architectures import ARCHITECTURES
    from .convnext import ConvNeXt, ConvNeXtClassifier
    from .errors import InputError
    from .fusing import fuse
    from .isotropic import IsotropicConvNeXt, IsotropicConvNeXtClassifier
    from .pretrained import create_backbone
    from .roadmap import ModernizedResNet, ModernizedResNetClassifier
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(
                f"backbones.{name} needs mmengine: pip install mmengine (backbones.ops does not)"
            )
        raise AttributeError(f"module 'backbones' has no attribute {name!r}")
