"""Load images and name the file on failure, in training, evaluation and prediction alike."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from backbones.errors import UnreadableImage

from .bands import Bands, read_bands
from .decoding import DAMAGED, decode_image
from .files import one_line


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Load an image as mmcv's LoadImageFromFile does, through the one decoder; name a bad file.

    With `bands` it loads these bands of an image of any number and depth as they are, without a
    change of channel order, and marks missing pixels for `IgnoreMissing`; see `Bands`. An image
    (H, W, bands) that is in the results already, as prediction passes it, is taken instead.

    Args:
        bands: names of the bands to load, in the network's order; None loads 8-bit colour.
        band_names, band_dtype, nodata, fill, composite, colour_map: as in `Bands`.
        kwargs: as in LoadImageFromFile.

    Raises:
        UnreadableImage: the file is missing, unreadable, empty or not an image.
    """

    def __init__(
        self,
        *args,
        bands: Sequence[str] | None = None,
        band_names: Sequence[str] = (),
        band_dtype: str = "uint8",
        nodata: float | None = None,
        fill: Sequence[float] = (),
        composite: Sequence[str] | None = None,
        colour_map: str | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.bands = None
        if bands is not None:
            shown = None if composite is None else tuple(composite)
            self.bands = Bands(
                tuple(bands), tuple(band_names), band_dtype, nodata, tuple(fill), shown, colour_map
            )

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            if self.bands is not None:
                return self._with_bands(results, self.bands)
            if self.color_type != "color" or self.imdecode_backend != "cv2":
                return super().transform(results)
            image = decode_image(self._content(path), path)
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

    def _with_bands(self, results: dict, bands: Bands) -> dict:
        if "img" not in results:
            with self._on_disk(str(results["img_path"])) as path:
                results["img"], results["missing_pixels"] = read_bands(path, bands)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results

    def _content(self, path: str) -> bytes:
        """Return all bytes of a file through the pipeline's file backend."""
        if self.file_client_args is not None:
            client = fileio.FileClient.infer_client(self.file_client_args, path)
            return bytes(client.get(path))
        return bytes(fileio.get(path, backend_args=self.backend_args))

    @contextmanager
    def _on_disk(self, path: str) -> Iterator[Path]:
        """Yield a file of this disk, a copy if the pipeline's backend has it elsewhere.

        An error names the file as the data set does.
        """
        if Path(path).is_file() or not (self.backend_args or self.file_client_args):
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, os.path.basename(path) or "image")
            copy.write_bytes(self._content(path))
            try:
                yield copy
            except UnreadableImage as error:
                reason = str(error).removeprefix(f"{one_line(copy)}: ")
                raise UnreadableImage(f"{one_line(path)}: {reason}", where=path) from None


@TRANSFORMS.register_module()
class IgnoreMissing(BaseTransform):
    """Label the pixels that `LoadImage` found missing (nodata, NaN) as ignored.

    It stands right after LoadAnnotations, where the label map has the size of the stored image.

    Args:
        ignore_index: label of ignored pixels.
    """

    def __init__(self, ignore_index: int = 255):
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Change `gt_seg_map` of one sample."""
        missing = results.pop("missing_pixels", None)
        if missing is not None and "gt_seg_map" in results:  # prediction has no label map
            results["gt_seg_map"][missing] = self.ignore_index
        return results
