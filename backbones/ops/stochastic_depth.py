"""Apply stochastic depth (arXiv:1603.09382): a share of the samples skips a residual branch."""

from collections.abc import Callable

import torch
from torch import Tensor


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], drop_rate: float) -> Tensor:
    """Add a branch to x for the samples that keep it, scaled by 1 / (1 - drop_rate).

    The branch of a dropped sample would be multiplied by zero and get no gradient, so it is not
    computed. A graph, which a number of samples that changes would break, computes all of them.

    Args:
        x: (N, ...).
        branch: maps (n, ...) to the same shape; a function of each sample alone.
        drop_rate: probability in [0, 1) that a sample skips the branch; 0 outside training.
    """
    if not drop_rate:
        return x + branch(x)
    if torch.compiler.is_compiling():
        return x + drop_samples(branch(x), drop_rate)
    # Drawn on the CPU: the indices of a CUDA mask would wait for the GPU in every block.
    kept = torch.rand(len(x), device="cpu") >= drop_rate
    if kept.all():
        return x + branch(x) / (1 - drop_rate)
    indices = kept.nonzero().squeeze(1).to(x.device, non_blocking=True)
    # Not x[indices], whose gradient a GPU sorts the indices for.
    y = branch(x.index_select(0, indices)) / (1 - drop_rate)
    # With no sample kept this adds an empty batch: every parameter still gets a gradient, zero.
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype).index_add(0, indices, y.to(dtype))


def drop_samples(y: Tensor, drop_rate: float) -> Tensor:
    """Zero a branch's output (N, ...) for the samples that skip it, and scale the others.

    For a branch that must see every sample, as one with batch norms does.
    """
    kept = torch.rand(len(y), device=y.device) >= drop_rate
    return y * (kept / (1 - drop_rate)).to(y.dtype).view(-1, *[1] * (y.ndim - 1))
