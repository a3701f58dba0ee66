"""Make operators of PyTorch of functions that launch Triton's kernels, and cast their gradients."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

# On a CPU Triton's interpreter runs the kernels.
operator = partial(torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda"))


def cast_where_needed(
    grads: Iterable[Tensor], dtypes: Iterable[torch.dtype], needed: Iterable[bool]
) -> tuple[Tensor | None, ...]:
    """Return gradients in the dtypes of their inputs; None where none is asked for."""
    return tuple(
        grad.to(dtype) if asked else None
        for grad, dtype, asked in zip(grads, dtypes, needed, strict=True)
    )
