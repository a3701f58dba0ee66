"""Check polygons and run lengths of COCO files without rasterising them.

pycocotools and faster-coco-eval trust run lengths: those that do not fill their size are read
beyond their memory or never end.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

LARGEST = 1e9  # beyond any number of pixels
LEAST_CORNERS = 3

Segmentation = list | dict


class RunLengths(TypedDict):
    """Run lengths as pycocotools has them.

    Attributes:
        size: [height, width].
        counts: the code.
    """

    size: list[int]
    counts: str | bytes


def are_numbers(values: object) -> TypeGuard[list[float]]:
    """Return whether it is a list of finite numbers within a plausible range of pixels."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and abs(value) < LARGEST for value in values
    )


def mask_fault(segmentation: object, size: tuple[int, int] | None) -> str:
    """Describe what is wrong with a mask; empty if nothing is.

    Args:
        segmentation: segmentation of a COCO annotation.
        size: (height, width) of its image, if known.
    """
    if isinstance(segmentation, list):
        return _polygon_fault(segmentation)
    if isinstance(segmentation, dict):
        return _run_length_fault(segmentation, size)
    return "is neither polygons nor run lengths"


def _polygon_fault(polygons: list) -> str:
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            return "polygons are not nested: write [[x, y, x, y, ...], ...]"
        if not are_numbers(polygon):
            if polygon and all(isinstance(pair, list) for pair in polygon):
                return "polygons are pairs of numbers: write [[x, y, x, y, ...], ...]"
            return f"polygon {number} holds something other than finite numbers"
        if len(polygon) % 2:
            return f"polygon {number} has {len(polygon)} numbers, not pairs of x and y"
    short = [len(polygon) // 2 for polygon in polygons if len(polygon) < 2 * LEAST_CORNERS]
    if short:
        return f"polygon of fewer than three points ({short[0]})"
    return ""


def _run_length_fault(code: dict, size: tuple[int, int] | None) -> str:
    stated, counts = code.get("size"), code.get("counts")
    if not are_numbers(stated) or len(stated) != 2 or not all(_is_whole(x) for x in stated):
        return "run lengths have no size=[height, width]"
    if size is not None and tuple(stated) != size:
        shown = f"size {list(map(int, stated))} of the run lengths is not its image's {list(size)}"
        swapped = tuple(stated) == size[::-1]
        return shown + (": height and width are swapped" if swapped else "")
    if isinstance(counts, str):
        try:
            runs = decode_counts(counts)
        except ValueError as error:
            return f"counts of the run lengths cannot be read ({error})"
    elif are_numbers(counts) and all(_is_whole(x) for x in counts):
        runs = np.array(counts, np.int64)
    else:
        return "run lengths have no counts: a string or a list of integers"
    if (runs < 0).any():
        return f"run lengths hold {int(runs.min())}, a negative count"
    pixels = int(stated[0]) * int(stated[1])
    if (filled := int(runs.sum())) != pixels:
        return f"run lengths fill {filled} of {pixels} pixels"
    return ""


def _is_whole(value: float) -> bool:
    return not isinstance(value, bool) and value == int(value) and value >= 0


def decode_counts(text: str) -> np.ndarray:
    """Decode COCO's compressed run lengths without checking them against a size.

    Each count is a little-endian number of 5 bits per character, 32 marks continuation, 16 in
    the last one is the sign; from the fourth on they are differences from the last but one.

    Raises:
        ValueError: a character is none of the code's, or the last count ends in its middle.
    """
    characters = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if len(characters) == 0:
        return np.zeros(0, np.int64)
    if characters.min() < 0 or characters.max() > 63:
        raise ValueError("characters outside COCO's code")
    ends = np.flatnonzero(characters < 32)
    if len(ends) == 0 or ends[-1] != len(characters) - 1:
        raise ValueError("they end in the middle of a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: pycocotools' counts have 32
        raise ValueError("a number of more than 32 bits")
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((characters & 31) << (5 * places), starts)
    runs -= np.where(characters[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def tidied(segmentation: Any) -> Any:
    """Convert polygons written in another way into COCO's form, `[[x, y, x, y, ...], ...]`.

    One that is not nested is nested, pairs of numbers are joined, empty parts and parts of fewer
    than three points are left out. Anything else comes back as it is.

    Returns:
        The segmentation; None if there is no mask.
    """
    if not segmentation:
        return None
    if not isinstance(segmentation, list):
        return segmentation
    polygons: list[Any]
    if are_numbers(segmentation):  # one polygon, not nested
        polygons = [segmentation]
    elif len(segmentation) >= LEAST_CORNERS and all(_is_pair(part) for part in segmentation):
        polygons = [segmentation]  # one polygon of pairs
    else:
        polygons = segmentation
    parts = []
    for part in polygons:
        if isinstance(part, list) and part and all(_is_pair(pair) for pair in part):
            part = [number for pair in part for number in pair]
        if not are_numbers(part) or len(part) % 2:
            return segmentation  # which `mask_fault` names
        if len(part) >= 2 * LEAST_CORNERS:
            parts.append(part)
    return parts or None


def _is_pair(value: object) -> bool:
    return are_numbers(value) and len(value) == 2


def rectangle(box: Sequence[float]) -> list[list[float]]:
    """Return the polygon of a box [x, y, width, height]."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def encoded(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """Return the run lengths of a sound mask in an image of (height, width)."""
    height, width = size
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def box_of(segmentation: Segmentation, size: tuple[int, int]) -> list[float]:
    """Return [x, y, width, height] of a valid mask in an image of (height, width)."""
    if isinstance(segmentation, list):
        corners = np.concatenate([np.array(part, float).reshape(-1, 2) for part in segmentation])
        low, high = corners.min(0), corners.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    return coco_mask.toBbox(encoded(segmentation, size)).tolist()


def area_of(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """Return the number of pixels of a valid mask in an image of (height, width)."""
    return float(coco_mask.area(encoded(segmentation, size)))
