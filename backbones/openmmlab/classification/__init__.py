"""Register what a classification config needs: folders, augmentation, model, metric, EMA.

The recipe is that of "A ConvNet for the 2020s" (arXiv:2201.03545, appendix A) as its official code
carries it out. timm supplies augmentation, mixing and losses, torchvision the data set, mmengine
the runner and the EMA; mmpretrain is not needed.
"""

from backbones.openmmlab.data import loading
from backbones.openmmlab.training.ema import WeightAverageHook

from .accuracy import TopAccuracy
from .band_transforms import AugmentBands, ResizeBandsForTest
from .folders import ClassFolders
from .model import ImageClassifier
from .task import CLASSIFICATION
from .transforms import LoadRGB, ResizeForTest, TimmAugment

__all__ = [
    "CLASSIFICATION",
    "AugmentBands",
    "ClassFolders",
    "ImageClassifier",
    "LoadRGB",
    "ResizeBandsForTest",
    "ResizeForTest",
    "TimmAugment",
    "TopAccuracy",
    "WeightAverageHook",
    "loading",
]
