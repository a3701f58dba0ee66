"""What a classification config needs registered: folders, augmentation, model, metric, EMA.

The recipe is that of "A ConvNet for the 2020s" (arXiv:2201.03545, appendix A) as its official code
carries it out. timm supplies augmentation, mixing and losses, torchvision the data set, mmengine
the runner and the average of the weights; mmpretrain is not needed.
"""

from backbones.openmmlab.training.ema import WeightAverageHook

from .accuracy import TopAccuracy
from .folders import ClassFolders
from .model import ImageClassifier
from .transforms import LoadRGB, ResizeForTest, TimmAugment

__all__ = [
    "ClassFolders",
    "ImageClassifier",
    "LoadRGB",
    "ResizeForTest",
    "TimmAugment",
    "TopAccuracy",
    "WeightAverageHook",
]
