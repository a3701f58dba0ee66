"""Measure the time, memory and disturbance of a call."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from backbones.openmmlab.peak_memory import peak_beyond, reset_peak


def seconds(run: Callable[[], object], cuda: bool) -> float:
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], object], cuda: bool) -> float:
    """Return the peak in MiB above the memory held before; on a CPU of the resident set."""
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = reset_peak()
    run()
    return peak_beyond(before)


def processor_seconds() -> float:
    """Return the processor seconds that all processes have used so far; NaN where unknown."""
    if sys.platform != "linux":
        return float("nan")
    counted = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = counted[3] + counted[4]
    return (sum(counted) - idle) / os.sysconf("SC_CLK_TCK")
