"""Ask oneDNN what PyTorch's kernels support on this processor.

Nothing here names a processor. oneDNN settles on an instruction set when it is first used, so that
answer is remembered; settings that a process may change are read in every call, also in that of a
compiled graph. No answer is kept in a model, which may be pickled here and loaded elsewhere.
"""

from functools import cache

import torch
from torch import Tensor

# oneDNN's names of the dtypes that not every processor has instructions for.
LOW_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def onednn_linear_applies(x: Tensor) -> bool:
    """Return whether oneDNN's linear can be called directly on rows of x's dtype, and pays off.

    It pays off where `F.linear` would take MKL's product. Builds without MKL, as for ARM, have a
    product of their own behind `F.linear`, and those without oneDNN have nothing to call.
    """
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and has_onednn()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private in PyTorch: it may go
        and computes_natively(x.dtype)
    )


def computes_natively(dtype: torch.dtype) -> bool:
    """Return whether PyTorch has fast CPU kernels for dtype here.

    Without them convolutions and products in bfloat16 or float16 are right, and far slower than in
    float32.
    """
    return dtype not in LOW_PRECISION or (has_onednn() and _onednn_has(LOW_PRECISION[dtype]))


def has_onednn() -> bool:
    """Return whether this build of PyTorch has oneDNN, and it is enabled."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


@cache
def _onednn_has(dtype: str) -> bool:
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    return supported is not None and supported()
