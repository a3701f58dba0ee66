"""Compute maps of the mean absolute activation of each stage of a backbone."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from .predictor import Predictor


class StageMap(NamedTuple):
    """Hold a stage's mean absolute activation.

    Attributes:
        stage: number of the stage, from 1.
        channels: number of channels averaged over.
        values: (h, w) float32, the part of the map that the image covers.
    """

    stage: int
    channels: int
    values: np.ndarray


@torch.inference_mode()
def stage_maps(predictor: Predictor, image: np.ndarray) -> list[StageMap]:
    """Compute the map of each stage before its output norm; empty for a network without stages.

    Args:
        predictor: the model; the image goes through its pipeline as a whole.
        image: as `Predictor.read` returns it.
    """
    model = predictor.model
    network = model.backbone if hasattr(model, "backbone") else getattr(model, "network", None)
    forward_stages = getattr(network, "forward_stages", None)
    if forward_stages is None:
        return []
    packed = predictor.packed(image)
    height, width = packed["inputs"].shape[-2:]
    inputs = model.data_preprocessor(predictor.collate([packed]), False)["inputs"]
    maps = []
    for stage, x in enumerate(forward_stages(inputs), start=1):
        # What a data preprocessor padded is right of and below the image.
        rows = max(1, round(x.shape[2] * height / inputs.shape[2]))
        columns = max(1, round(x.shape[3] * width / inputs.shape[3]))
        values = x[0, :, :rows, :columns].float().abs().mean(0).cpu().numpy()
        maps.append(StageMap(stage, x.shape[1], values))
    return maps


def draw_heat(values: np.ndarray, height: int, width: int) -> Image.Image:
    """Draw a map (h, w) at the size of its image, dark for its minimum, bright for its maximum."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    cells = cv2.applyColorMap((scaled * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    large = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    return Image.fromarray(cv2.cvtColor(large, cv2.COLOR_BGR2RGB))
