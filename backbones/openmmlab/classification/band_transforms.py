"""Augment and resize classifiers' images of any number of bands, band by band as Pillow does."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import Tensor
from torchvision.transforms import functional

from .transforms import evaluation_resize, packed

RATIO = (3 / 4, 4 / 3)  # of a crop's sides, timm's


@TRANSFORMS.register_module()
class AugmentBands(BaseTransform):
    """Augment (H, W, bands) as `TimmAugment` does, without what changes colours.

    Args:
        input_size, scale, vflip, re_prob, interpolation: as in TimmAugment.
        mean, std: of the bands; of 8-bit images for values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        re_prob: float = 0.25,
        scale: tuple[float, float] = (0.08, 1.0),
        vflip: float = 0.0,
        interpolation: str = "bicubic",
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        self.size, self.scale, self.vflip = input_size, tuple(scale), vflip
        self.interpolation: Any = str_to_interp_mode(interpolation)
        self.mean, self.std = list(mean), list(std)
        self.erase = RandomErasing(re_prob, mode="pixel", device="cpu")

    def transform(self, results: dict) -> dict:
        first = Image.fromarray(results["img"][..., 0])
        place = RandomResizedCropAndInterpolation.get_params(first, self.scale, RATIO)
        size = [self.size, self.size]
        image = by_band(
            results["img"],
            lambda band: functional.resized_crop(band, *place, size, self.interpolation),
        )
        if random.random() < 0.5:
            image = image.flip(-1)
        if random.random() < self.vflip:
            image = image.flip(-2)
        return packed(results, self.erase(functional.normalize(image, self.mean, self.std)))


@TRANSFORMS.register_module()
class ResizeBandsForTest(BaseTransform):
    """Resize, crop and normalise (H, W, bands) as `ResizeForTest` does.

    Args:
        input_size: side of the result in pixels.
        mean, std: of the bands; of 8-bit images for values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        self.resize = evaluation_resize(input_size)
        self.mean, self.std = list(mean), list(std)

    def transform(self, results: dict) -> dict:
        image = by_band(results["img"], self.resize)
        return packed(results, functional.normalize(image, self.mean, self.std))


def by_band(image: np.ndarray, change: Callable[[Any], Any]) -> Tensor:
    """Change each band as a picture of its own, which Pillow resizes like a channel of RGB.

    Args:
        image: (H, W, bands), uint8 or float32.
        change: resizes or crops a Pillow image, each band alike.

    Returns:
        (bands, h, w) float32; 8-bit values become those of [0, 1].
    """
    bands = [change(Image.fromarray(band)) for band in np.moveaxis(image, -1, 0)]
    return torch.cat([functional.to_tensor(band) for band in bands])
