"""Choose the dtype that an operator computes in."""

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest dtype of the tensors; float32 for half precision.

    Operators compute halves in float32 and round once: mmcv's kernels compute float16 in float16,
    and most have no bfloat16.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
