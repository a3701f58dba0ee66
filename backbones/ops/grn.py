"""Define global response normalisation (V2 paper, section 3.2, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6
PIXELS_AT_A_TIME = 1024


def response(norm: Tensor, gamma: Tensor) -> Tensor:
    """Return the factor of each channel from the L2 norms (..., C) of the channels' maps."""
    return 1 + gamma * (norm / (norm.mean(dim=-1, keepdim=True) + EPS))


def sums_of_squares(x: Tensor) -> Tensor:
    """Return the sums (N, C) of squares of each channel of (N, pixels, C), in float32 or wider.

    On a CPU PyTorch's `vector_norm` adds up the pixels of a channel one by one and takes four times
    as long; over 16384 pixels a norm's error is 4e-6 of it, here 1e-7.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = torch.zeros(len(x), x.shape[-1], dtype=dtype)
    for pixels in x.split(PIXELS_AT_A_TIME, dim=1):  # or their squares leave the cache
        sums += pixels.to(dtype).square().sum(1)
    return sums


def global_response_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Compute x + beta + gamma * x * norm / mean(norm) of (N, H, W, C).

    The norms are taken in float32: their squares overflow fp16. On a GPU it can be differentiated
    once; a graph that is compiled has the plain formula, which the compiler fuses itself.

    Args:
        x: (N, H, W, C).
        gamma, beta: broadcastable to (1, 1, 1, C).
    """
    if x.is_cuda and not torch.compiler.is_compiling():
        return _ResponseNorm.apply(x, gamma, beta)
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=dtype)  # (N, 1, 1, C)
    return (x * response(norm, gamma) + beta).to(x.dtype)


class _ResponseNorm(torch.autograd.Function):
    """The same in few passes over the map, which write it in x's dtype at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=dtype)  # (N, 1, 1, C)
        ctx.save_for_backward(x, norm, gamma)
        # One kernel reads x, computes in the widest dtype of its arguments and writes x's.
        return torch.addcmul(beta, x, response(norm, gamma), out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, gamma = ctx.saved_tensors
        for_x, for_gamma, for_beta = ctx.needs_input_grad
        # The gradients of gamma and of the norms need sums of grad * x over each channel's map.
        # The zero makes them products of its dtype: in halves they would be rounded, or overflow.
        products = torch.addcmul(norm.new_zeros(1, 1, 1, 1), grad, x)
        sums = products.sum((1, 2), keepdim=True)  # (N, 1, 1, C)
        mean = norm.mean(dim=-1, keepdim=True) + EPS
        share = norm / mean
        grad_share = sums * gamma
        # share = norm / mean(norm), and a channel's norm is in the mean of all.
        grad_norm = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
        grad_x = None
        if for_x:
            grad_x = torch.mul(grad, 1 + gamma * share, out=torch.empty_like(x))
            # The gradient of a norm of 0 is 0, as PyTorch's.
            towards = torch.where(norm > 0, grad_norm / norm, 0)
            torch.addcmul(grad_x, x, towards, out=grad_x)
        return (
            grad_x,
            (sums * share).sum_to_size(gamma.shape).to(gamma.dtype) if for_gamma else None,
            grad.sum((0, 1, 2), keepdim=True, dtype=norm.dtype) if for_beta else None,
        )
