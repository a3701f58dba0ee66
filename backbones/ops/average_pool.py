"""Adaptive average pooling as two matrix products, whose gradient adds in one order everywhere."""

import torch
from torch import Tensor


def average_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute `torch.nn.functional.adaptive_avg_pool2d` of a map of any, also of dynamic, size.

    PyTorch's own has no deterministic gradient on CUDA.

    Args:
        x: (N, C, H, W).
        size: bins (h, w).

    Returns:
        (N, C, h, w), computed in float32 outside autocast.
    """
    rows, columns = (
        _bins(length, bins, x.device) for length, bins in zip(x.shape[2:], size, strict=True)
    )
    return (rows @ x.float() @ columns.mT).to(x.dtype)


def _bins(length: int, bins: int, device: torch.device) -> Tensor:
    """Return (bins, length) weights of a line's cells in the bins of an adaptive average."""
    number, cell = torch.arange(bins, device=device)[:, None], torch.arange(length, device=device)
    start = number * length // bins
    stop = ((number + 1) * length + bins - 1) // bins
    inside = ((cell >= start) & (cell < stop)).float()
    return inside / (stop - start)
