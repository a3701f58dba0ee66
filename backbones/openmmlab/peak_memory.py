"""Measure the peak memory of this process."""

import resource

import torch


def peak_memory() -> int:
    """Return the peak memory in MiB: the GPU's if there is one, otherwise the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
