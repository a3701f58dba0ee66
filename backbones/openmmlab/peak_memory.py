"""Measure the peak memory of this process."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> int:
    """Return the peak memory in MiB: the GPU's if there is one, otherwise the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    if sys.platform == "linux":  # where ru_maxrss begins with the peak of whoever started this
        return _resident("VmHWM") // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def reset_peak() -> int | None:
    """Begin a new peak of the resident set; return its present size in KiB.

    None where the system has no peak that can be reset, which Linux alone has.
    """
    if sys.platform != "linux":
        return None
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_beyond(before: int | None) -> float:
    """Return in MiB how far the resident set rose above what `reset_peak` returned; NaN for None.

    Args:
        before: what `reset_peak` returned.
    """
    return float("nan") if before is None else (_resident("VmHWM") - before) / 1024


def _resident(kind: str) -> int:
    """Return VmRSS or VmHWM in KiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{kind}:")[2].split()[0])
