"""Encode masks in COCO's run lengths, each from its extent alone."""

from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


class MaskCrops(NamedTuple):
    """Hold the masks of an image, cut to their extents, on the CPU.

    Attributes:
        size: (height, width) of the image.
        corners: (n, 4) left, top, right and bottom of each crop; of an empty mask all are 0.
        pixels: bool, of all crops in turn, column by column.
    """

    size: tuple[int, int]
    corners: np.ndarray
    pixels: np.ndarray


def crop_masks(masks: Tensor) -> MaskCrops:
    """Cut masks (n, H, W) to their extents; from a GPU only the crops are copied."""
    masks = masks.detach() if masks.dtype == torch.bool else masks != 0
    n, height, width = masks.shape
    (left, right), (top, bottom) = (_extents(_any(masks, axis)) for axis in (1, 2))
    corners = torch.stack([left, top, right, bottom], dim=1)
    sides = corners.cpu()
    crops = [
        mask[top:bottom, left:right].T.reshape(-1)
        for mask, (left, top, right, bottom) in zip(masks, sides.tolist(), strict=True)
    ]
    pixels = torch.cat(crops) if n else masks.new_empty(0)
    return MaskCrops((height, width), sides.numpy(), pixels.cpu().numpy())


def _any(masks: Tensor, axis: int) -> Tensor:
    """Return `masks.any(axis)`; NumPy takes a tenth of the time of PyTorch on a CPU."""
    return torch.from_numpy(masks.numpy().any(axis)) if masks.is_cpu else masks.any(axis)


def _extents(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place and that after the last in each row of (n, length), bool."""
    first = occupied.byte().argmax(1)
    end = occupied.shape[1] - occupied.byte().flip(1).argmax(1)
    return first, torch.where(occupied.any(1), end, first)


def encode_crops(crops: MaskCrops) -> list[dict]:
    """Return the run lengths of each mask in the whole image: `size`, and `counts` as a string."""
    height, width = crops.size
    codes, start = [], 0
    for left, top, right, bottom in crops.corners.tolist():
        rows, columns = bottom - top, right - left
        crop = crops.pixels[start : start + rows * columns].reshape(columns, rows)
        start += crop.size
        counts = _runs(crop, left, top, height, width)
        runs: Any = dict(size=[height, width], counts=counts)
        code = coco_mask.frPyObjects(runs, height, width)
        codes.append(dict(size=code["size"], counts=code["counts"].decode()))
    return codes


def _runs(crop: np.ndarray, left: int, top: int, height: int, width: int) -> list[int]:
    """Return the lengths of runs of zeros and ones in turn, down the image's columns.

    Args:
        crop: (columns, rows) of the crop.
        left, top: its place.
        height, width: the image's.
    """
    edges = np.zeros((crop.shape[0], crop.shape[1] + 2), np.int8)
    edges[:, 1:-1] = crop
    edges = np.diff(edges, axis=1)
    (columns, rows), (end_columns, end_rows) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    begins = (left + columns) * height + top + rows
    ends = (left + end_columns) * height + top + end_rows
    apart = begins[1:] != ends[:-1]  # a run may go on at the top of the next column
    begins = begins[np.concatenate([[True], apart])] if begins.size else begins
    ends = ends[np.concatenate([apart, [True]])] if ends.size else ends
    places = np.stack([begins, ends], axis=1).reshape(-1)
    counts = np.diff(np.concatenate([[0], places, [height * width]]))
    return counts[:-1].tolist() if len(counts) > 1 and counts[-1] == 0 else counts.tolist()
