"""Load images and name the file on failure, in training, evaluation and prediction alike."""

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from backbones.errors import UnreadableImage

from .decoding import DAMAGED, decode_image
from .files import one_line


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Load an image as mmcv's LoadImageFromFile does, through the one decoder; name a bad file.

    Raises:
        UnreadableImage: the file is missing, unreadable, empty or not an image.
    """

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            if self.color_type != "color" or self.imdecode_backend != "cv2":
                return super().transform(results)
            if self.file_client_args is not None:
                client = fileio.FileClient.infer_client(self.file_client_args, path)
                content = client.get(path)
            else:
                content = fileio.get(path, backend_args=self.backend_args)
            image = decode_image(bytes(content), path)
        except UnreadableImage:
            if self.ignore_empty:
                return None
            raise
        except (AssertionError, cv2.error):
            raise UnreadableImage(f"{one_line(path)}: {DAMAGED}", where=path) from None
        except OSError as error:
            if self.ignore_empty:
                return None
            reason = f"cannot be read ({error.strerror or error})"
            raise UnreadableImage(f"{one_line(path)}: {reason}", where=path) from None
        results["img"] = image.astype("float32") if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results
