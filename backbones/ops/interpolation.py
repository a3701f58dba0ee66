"""Express linear interpolation along one side of a map as a matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolation_matrix(low: int, high: int, align_corners: bool) -> Tensor:
    """Return the weights (high, low) float64 of a line's positions for each output position."""
    eye = torch.eye(low, dtype=torch.float64)[None]
    return F.interpolate(eye, size=high, mode="linear", align_corners=align_corners)[0].T


def interpolation_sources(low: int, high: int, align_corners: bool) -> list[int]:
    """Return the first of the two low positions that each output position lies between."""
    if align_corners:
        return [i * (low - 1) // max(high - 1, 1) for i in range(high)]
    return [max(((2 * i + 1) * low - high) // (2 * high), 0) for i in range(high)]
