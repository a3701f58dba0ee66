"""Measure how far the outputs of an exported file are from the model's, on one image."""

from typing import NamedTuple

from torch import Tensor


class Differences(NamedTuple):
    """Hold the differences of one image, which `Agreement` adds up.

    Attributes:
        largest: the largest difference by what was compared, each relative to its range.
        detections: how many the model or the file found, whichever found more.
        unpaired: how many of them only one of the two found.
    """

    largest: dict[str, float]
    detections: int = 0
    unpaired: int = 0


def relative_difference(reference: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest magnitude; inf for another shape."""
    if reference.shape != other.shape:
        return float("inf")
    difference = (reference.double() - other.double()).abs().max()
    return float(difference / reference.abs().max().clamp(min=1e-12))
