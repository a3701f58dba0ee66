"""Choose how many sliding windows a GPU computes at once, by the memory that is free."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

AT_MOST = 16  # windows, which fill a GPU
REPEATABLE = 4  # windows where results must not depend on what else is in memory
SHARE = 0.5  # of the free memory: it lies in pieces, and other processes take from it


class WindowBatches:
    """Remember how much memory windows take, and say how many fit.

    A size or dtype that is met for the first time begins with one window for each image. What it
    takes is bounded by the highest memory of the process so far, so nothing is reset or waited for.
    """

    def __init__(self) -> None:
        self._bytes: dict[torch.dtype, float] = {}  # of a window, at most, by pixel

    def size(self, images: Tensor, pixels: int) -> int:
        """Return how many windows of so many pixels to compute at once.

        Args:
            images: (N, 3, H, W) on a GPU.
            pixels: of a window.
        """
        if torch.are_deterministic_algorithms_enabled():
            return REPEATABLE
        if (needed := self._bytes.get(_dtype(images))) is None:
            return 1
        free, _ = torch.cuda.mem_get_info(images.device)
        free += torch.cuda.memory_reserved(images.device)
        free -= torch.cuda.memory_allocated(images.device)
        return windows_that_fit(free, needed * pixels)

    @contextmanager
    def noted(self, windows: Tensor) -> Iterator[None]:
        """Note the memory that the computation of windows (n, 3, h, w) takes."""
        if not windows.is_cuda:
            yield
            return
        before = torch.cuda.memory_allocated(windows.device)
        yield
        used = torch.cuda.max_memory_allocated(windows.device) - before
        used /= len(windows) * windows.shape[2] * windows.shape[3]
        dtype = _dtype(windows)
        self._bytes[dtype] = min(used, self._bytes.get(dtype, used))


def windows_that_fit(free: float, needed: float) -> int:
    """Return how many windows that each need so many bytes fit into the free ones."""
    return int(max(1, min(AT_MOST, SHARE * free // max(needed, 1))))


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
