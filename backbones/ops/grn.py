"""Define global response normalisation (V2 paper, section 3.2, algorithm 1)."""

import torch
from torch import Tensor

EPS = 1e-6


def response(norm: Tensor, gamma: Tensor) -> Tensor:
    """Return the factor of each channel from the L2 norms (..., C) of the channels' maps."""
    return 1 + gamma * (norm / (norm.mean(dim=-1, keepdim=True) + EPS))


def global_response_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Compute x + beta + gamma * x * norm / mean(norm) of (N, H, W, C).

    The norms are taken in float32: their squares overflow fp16.

    Args:
        x: (N, H, W, C).
        gamma, beta: broadcastable to (1, 1, 1, C).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=dtype)  # (N, 1, 1, C)
    return (x * response(norm, gamma) + beta).to(x.dtype)
