"""Measure the parts of the data path: transforms, decoders, and the encoding of masks."""

import io
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from backbones.errors import InputError
from backbones.openmmlab.data.decoding import decode_image
from backbones.openmmlab.detection.mask_codes import crop_masks, encode_crops
from backbones.openmmlab.segmentation.label_range import CheckedLabels

ROUNDS = 3


class Timed:
    """Call a transform and add up its CPU seconds."""

    def __init__(self, transform: Callable[[dict], Any]):
        self.transform, self.seconds = transform, 0.0
        self.name = type(transform).__name__

    def __call__(self, results: dict) -> Any:
        start = time.process_time()
        found = self.transform(results)
        self.seconds += time.process_time() - start
        return found


def timed_pipeline(data: Any) -> list[Timed]:
    """Replace the transforms of a data set by timed ones; return these."""
    pipeline = getattr(data, "pipeline", None)
    if pipeline is None or not hasattr(pipeline, "transforms"):
        return []
    pipeline.transforms = [Timed(each) for each in pipeline.transforms]
    return pipeline.transforms


def per_image(work: Callable[[], object], images: int) -> float:
    """Return the CPU milliseconds that this process takes for an image."""
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start) / images


def median(work: Callable[[], object], images: int) -> float:
    work()
    return statistics.median(per_image(work, images) for _ in range(ROUNDS))


def decoders(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of an image, and the largest difference from our decoder's pixels."""
    contents = [path.read_bytes() for path in paths]
    ways: dict[str, Callable[[bytes], np.ndarray]] = {
        "OpenCV, ours": lambda content: decode_image(content, "image"),
        "Pillow": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[
            ..., ::-1
        ],
        "torchvision": _torchvision,
    }
    if find_spec("simplejpeg"):
        import simplejpeg  # pyright: ignore[reportMissingImports]

        ways["simplejpeg (libjpeg-turbo)"] = lambda content: simplejpeg.decode_jpeg(
            content, colorspace="BGR"
        )
        ways["simplejpeg, fast"] = lambda content: simplejpeg.decode_jpeg(
            content, colorspace="BGR", fastdct=True, fastupsample=True
        )
    wanted = [decode_image(content, "image") for content in contents]
    found = {}
    for name, decode in ways.items():
        ms = median(lambda decode=decode: [decode(content) for content in contents], len(contents))
        differences = []
        for content, image in zip(contents, wanted, strict=True):
            pixels = decode(content)
            if pixels.shape != image.shape:
                raise InputError(f"{name}: pixels {pixels.shape}, not {image.shape}", where=name)
            differences.append(np.abs(pixels.astype(int) - image).max())
        found[name] = dict(ms=ms, difference=float(max(differences)))
    return found


def _torchvision(content: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels = decode_jpeg(data, ImageReadMode.RGB, apply_exif_orientation=True)
    assert isinstance(pixels, torch.Tensor)  # a list of files gives a list
    return pixels.permute(1, 2, 0).numpy()[..., ::-1]


def encoders(height: int = 480, width: int = 640, count: int = 100) -> dict[str, dict[str, float]]:
    """Return the milliseconds of encoding the masks of an image, all and in each thread."""
    rng = np.random.default_rng(0)
    drawn = np.zeros((count, height, width), np.uint8)
    for mask in drawn:
        centre = tuple(int(v) for v in rng.uniform((0, 0), (width, height)))
        axes = tuple(int(v) for v in rng.choice([10, 40, 120]) * rng.uniform(0.5, 1.5, 2))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    masks = torch.from_numpy(drawn.astype(bool))
    crops = crop_masks(masks)
    whole = encode_mask_results(masks.numpy())
    if [code["counts"].decode() for code in whole] != [c["counts"] for c in encode_crops(crops)]:
        raise InputError("run lengths from crops are not those of whole masks")
    ways = {
        "whole masks, as in mmdet": lambda: encode_mask_results(masks.numpy()),
        "cropping": lambda: crop_masks(masks),
        "crops": lambda: encode_crops(crops),
    }
    return {name: dict(ms=median(way, 1)) for name, way in ways.items()}


def label_check(size: int = 512) -> float:
    """Return the milliseconds of checking the labels of one crop, of which some are ignored."""
    labels = torch.randint(0, 150, (1, size, size))
    labels[:, :40] = 255
    sample = dict(data_samples=SegDataSample(gt_sem_seg=PixelData(data=labels)))
    checked = CheckedLabels(lambda samples: samples, 150, 255)
    return median(lambda: [checked([sample]) for _ in range(20)], 20)
