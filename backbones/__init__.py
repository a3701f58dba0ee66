"""ConvNeXt backbones for detection and segmentation with OpenMMLab.

Importing it registers the backbones and the layer-decay constructor with mmengine, and puts
torchvision's operators in place of mmcv's compiled ones where those are missing. `backbones.ops`
needs torch alone and imports without OpenMMLab.
"""

from importlib.util import find_spec

if find_spec("mmengine"):
    from . import openmmlab
    from .architectures import ARCHITECTURES
    from .convnext import ConvNeXt, ConvNeXtClassifier
    from .errors import InputError
    from .isotropic import IsotropicConvNeXt, IsotropicConvNeXtClassifier
    from .pretrained import create_backbone
    from .roadmap import ModernizedResNet, ModernizedResNetClassifier

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
        "openmmlab",
    ]
