"""Measure time, memory and disturbance of the candidates, in turns."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from backbones.openmmlab.peak_memory import peak_beyond, reset_peak

from .candidates import Candidate

SECONDS_PER_CASE = 60  # a case that takes longer gets fewer rounds


def time_in_turns(
    candidates: list[Candidate], rounds: int | None, cuda: bool, progress: Callable
) -> None:
    """Time `rounds` turns of each candidate; None means 7, or fewer for a slow case, at least 3."""
    for candidate in candidates:  # warm-up, and compilation
        candidate.run()
        candidate.peak_mib = peak_memory(candidate.run, cuda)
    one_round = sum(seconds(candidate.run, cuda) for candidate in candidates)
    rounds = rounds or max(3, min(7, int(SECONDS_PER_CASE / one_round)))
    for i in range(rounds):
        turn = i % len(candidates)
        for candidate in candidates[turn:] + candidates[:turn]:
            candidate.seconds.append(seconds(candidate.run, cuda))
        progress(i + 1)


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


def processor_seconds() -> tuple[float, float]:
    """Return the processor seconds used so far by all processes and by this one."""
    if sys.platform != "linux":
        return float("nan"), 0.0
    counted = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = counted[3] + counted[4]
    return (sum(counted) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def others(before: tuple[float, float]) -> float:
    """Return the share of the machine's busy time since `before` that other processes used."""
    everything, own = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    return max(0.0, 1 - own / everything)
