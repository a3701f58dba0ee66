"""Loading images so that a bad file is named, in training, evaluation and prediction alike."""

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS

from backbones.errors import UnreadableImage


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile, whose failures name the file.

    Raises:
        UnreadableImage: the file is missing, unreadable, empty or not an image.
    """

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            return super().transform(results)
        except (AssertionError, cv2.error):
            raise UnreadableImage(f"{path}: empty, cut off or not an image") from None
        except OSError as error:
            raise UnreadableImage(f"{path}: cannot be read ({error.strerror or error})") from None
