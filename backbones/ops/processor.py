"""What PyTorch's kernels can do on this processor, by oneDNN's own answer.

Nothing here names a processor. oneDNN settles on an instruction set when it is first used, so that
answer is remembered; settings that a process may change are read in every call, also in that of a
compiled graph. No answer is kept in a model, which may be pickled here and loaded elsewhere.
"""

from functools import cache

import torch
from torch import Tensor


def onednn_linear(x: Tensor) -> bool:
    """Return whether oneDNN's linear can be called directly for rows of x's dtype.

    It is worth calling where `F.linear` would take MKL's product. Builds without MKL, as for ARM,
    have a product of their own behind `F.linear`, and those without oneDNN have nothing to call.
    """
    if x.dtype not in (torch.float32, torch.bfloat16) or not has_onednn():
        return False
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return x.dtype != torch.bfloat16 or _onednn_computes("bf16")


def computes_bfloat16() -> bool:
    """Return whether oneDNN has bfloat16 products for this processor; else PyTorch emulates them.

    Such products are right, and slower than those of float32.
    """
    return has_onednn() and _onednn_computes("bf16")


def has_onednn() -> bool:
    """Return whether this build of PyTorch has oneDNN, and it is not switched off."""
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


@cache
def _onednn_computes(dtype: str) -> bool:
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    return supported is not None and supported()
