"""Set up and describe the environment of a run: process group, cuBLAS, installed versions."""

import os
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.utils.dl_utils import collect_env

from backbones.atomic_write import write_atomically
from backbones.errors import InputError


def start_process_group_on_cpus(launcher: str) -> None:
    """Start the process group with gloo; mmengine would require CUDA.

    Raises:
        InputError: the launcher is not torchrun (`pytorch`).
    """
    if launcher != "pytorch":
        raise InputError(
            f"--launcher {launcher}: needs GPUs; on CPUs use torchrun",
            code="unsupported",
            where="--launcher",
        )
    torch.distributed.init_process_group("gloo")


def fix_cublas_workspace() -> None:
    """Set cuBLAS's workspace, which PyTorch requires for deterministic algorithms on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def write_environment(path: Path) -> str:
    """Write the full report of the environment to a file, and return a summary of it.

    All ranks call it; the first one writes.
    """
    env = collect_env()
    if is_main_process():
        report = "\n".join(f"{key}: {value}" for key, value in env.items())
        write_atomically(path, report + "\n")
    device = env.get("GPU 0") or f"CPU, {torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, mmengine {env['MMEngine']}, {device}"
