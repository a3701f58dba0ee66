"""Build the no-op GPU and start processes on it.

The library is preloaded, so that symbol lookup finds it before CUDA's own; it therefore needs a
process of its own. `counted` returns what a call asked of the GPU.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SOURCES = [Path(__file__).with_name(f"{name}.c") for name in ("cudart", "cublas", "driver")]
LIBRARY = "libcuda.so.1"  # the driver's name, by which Triton looks for it
INSIDE = LIBRARY in os.environ.get("LD_PRELOAD", "")
COUNTERS = ("launches", "syncs", "d2h", "h2d", "d2d", "mallocs", "memsets")


def missing() -> str | None:
    """Return what the no-op GPU needs and this machine lacks, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "needs Linux on x86-64"
    if not (torch.version.cuda or "").startswith("13."):
        return "needs PyTorch built for CUDA 13"
    if not torch.__version__.startswith("2.11."):
        return "the no-op GPU answers the calls that PyTorch 2.11 makes"
    if not shutil.which("gcc"):
        return "needs gcc"
    if not any((folder / "cuda_runtime_api.h").is_file() for folder in _headers()):
        return "needs the headers that come with PyTorch's CUDA packages"
    return None


def build(folder: Path) -> Path:
    """Compile the no-op GPU into a folder and return the library."""
    library = folder / LIBRARY
    include = [option for path in _headers() for option in ("-I", str(path))]
    options = ["-std=gnu17", "-O1", "-fPIC", "-shared", f"-Wl,-soname,{LIBRARY}", *include]
    subprocess.run(["gcc", *options, *map(str, SOURCES), "-o", str(library)], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a process that sees the no-op GPU and no other."""
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")])),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "CUDA_VISIBLE_DEVICES": "0",
    }


def counted(call: Callable[[], Any]) -> dict[str, int]:
    """Return how many launches, synchronisations and copies a call makes.

    The first call of a kind makes more, for handles, workspaces and constants that are kept.
    """
    runtime = ctypes.CDLL(None)  # preloaded, so its names are global
    numbers = (ctypes.c_ulonglong * len(COUNTERS))()
    runtime.noop_gpu_reset()
    call()
    runtime.noop_gpu_counts(numbers)
    return dict(zip(COUNTERS, numbers, strict=True))


def _headers() -> Iterator[Path]:
    # The runtime's package lacks crt/; Triton's has the one header of it that is needed here.
    for name, inside in (("nvidia.cu13", "include"), ("triton", "backends/nvidia/include")):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        for root in (found and found.submodule_search_locations) or ():
            yield Path(root) / inside
