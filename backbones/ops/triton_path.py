"""Decide whether Triton's kernels compute a block; refuse them where they cannot."""

import os
import warnings

import torch
from torch import Tensor

from backbones.errors import InputError
from backbones.packages import require

# Of a block; more would not fit into a program of the depthwise convolution with its norm.
LARGEST_CHANNELS = 4096


def check_kernels(kernels: str | None, name: str) -> None:
    """Check the argument `kernels` of a network called name.

    Raises:
        InputError: an unknown value, or triton is not installed.
    """
    if kernels is None:
        return
    if kernels != "triton":
        text = f"{name}: kernels {kernels!r} is neither 'triton' nor None"
        raise InputError(text, code="bad-value", where="kernels")
    require(f"{name}: kernels='triton' (PyTorch's CUDA builds bring it)", "triton")
    warnings.warn(
        f"{name}: kernels='triton' has not been timed on a GPU; it may be slower than kernels=None",
        stacklevel=4,
    )


def triton_path_applies(x: Tensor) -> bool:
    """Return whether Triton's kernels may compute a block of (N, H, W, C).

    Not in float64, and never for an exporter or a tracer, whose readers know PyTorch's operators
    only.

    Raises:
        InputError: x is on a CPU, where only Triton's interpreter (TRITON_INTERPRET=1) runs them.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if x.is_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        text = "kernels='triton' needs a GPU; set the backbone's kernels=None on a CPU"
        raise InputError(text, code="unsupported", where="kernels")
    return x.dtype != torch.float64 and x.shape[-1] <= LARGEST_CHANNELS
