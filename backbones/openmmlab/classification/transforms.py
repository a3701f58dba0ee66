"""Load, augment and resize classifiers' images."""

from pathlib import Path
from typing import Any

import cv2
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from backbones.openmmlab.data.decoding import read_image


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Read `img_path` into an RGB PIL image `img`, unless `img` is present already.

    Such an image is (H, W, 3) uint8 in BGR order. The decoder is that of every other task: the EXIF
    orientation of JPEG, PNG and TIFF is applied.

    Raises:
        UnreadableImage: the file is missing, unreadable, cut off or not an image.
    """

    def transform(self, results: dict) -> dict:
        if "img" in results:
            rgb = cv2.cvtColor(results["img"], cv2.COLOR_BGR2RGB)
            return {**results, "img": Image.fromarray(rgb)}
        image = read_image(Path(results["img_path"]))
        return {**results, "img": Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))}


@TRANSFORMS.register_module()
class TimmAugment(BaseTransform):
    """Augment for training as timm does: crop, flip, RandAugment, normalise, erase at random.

    Args:
        input_size: side of the crop in pixels.
        auto_augment: timm's name of a RandAugment policy; None jitters colours instead.
        color_jitter: brightness, contrast and saturation change by up to this, without a policy;
            or one number for each of them, and for the hue (of which 0.5 is the whole circle).
        re_prob: probability of random erasing, with noise.
        scale: smallest and largest share of the image's area that the crop covers.
        vflip: probability of a vertical flip.
        interpolation: how the crop is resized.
        mean, std: those of the channels, for values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | tuple[float, ...] = 0.4,
        re_prob: float = 0.25,
        scale: tuple[float, float] = (0.08, 1.0),
        vflip: float = 0.0,
        interpolation: str = "bicubic",
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ):
        self.augment: Any = create_transform(
            input_size,
            is_training=True,
            scale=scale,
            vflip=vflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            re_prob=re_prob,
            re_mode="pixel",
        )

    def transform(self, results: dict) -> dict:
        return packed(results, self.augment(results["img"]))


@TRANSFORMS.register_module()
class ResizeForTest(BaseTransform):
    """Resize, crop and normalise as the official code does for evaluation.

    Below 384 pixels the short side is resized to 256/224 of `input_size` and the centre is cropped;
    from 384 on the full image is resized, regardless of its aspect ratio.

    Args:
        input_size: side of the result in pixels.
        mean, std: mean and std of the channels, for values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ):
        self.resize = transforms.Compose(
            [evaluation_resize(input_size), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def transform(self, results: dict) -> dict:
        return packed(results, self.resize(results["img"]))


def evaluation_resize(input_size: int) -> Any:
    """Return the resizing and cropping of evaluation, of a Pillow image."""
    side = (input_size, input_size) if input_size >= 384 else input_size * 256 // 224
    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=InterpolationMode.BICUBIC),
            transforms.CenterCrop(input_size),
        ]
    )


def packed(results: dict, image: Tensor) -> dict[str, Any]:
    """Pack an image for `ImageClassifier`; the label is left out in prediction."""
    made = dict(inputs=image, img_path=str(results["img_path"]))
    if "label" in results:
        made["labels"] = results["label"]
    return made
