"""Compute the sigmoid focal loss of class labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill output (N, C) with the focal loss of each class of each sample.

    input: logits (N, C); target: (N,) int64, a class, or C or a negative number for background,
    which is no class; weight: (C,), a factor for the samples of each class, or empty. Halves are
    computed in float32 and rounded once; mmcv has no bf16.

    The values are those of torchvision.ops.sigmoid_focal_loss with one-hot targets. mmcv takes the
    logarithm of the sigmoid, which is wrong where that rounds to 1: in float32 beyond logits of 17.

    Lin et al., Focal Loss for Dense Object Detection, 2017, section 3; mmcv 2.3.6,
    ops/csrc/common/cuda/sigmoid_focal_loss_cuda_kernel.cuh.
    """
    logits = _positive_logits(input, target, "sigmoid_focal_loss_forward")
    loss = -F.logsigmoid(logits).mul_(torch.sigmoid(-logits).pow_(gamma))
    output.copy_(loss.mul_(_factors(input, target, weight, alpha)))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill grad_input (N, C) with the derivative of each of `sigmoid_focal_loss_forward`'s losses.

    With z the logit, negated where the class is not the sample's, and p its sigmoid:
    d/dz -(1 - p)^gamma log p = -(1 - p)^gamma (1 - p - gamma p log p).
    """
    logits = _positive_logits(input, target, "sigmoid_focal_loss_backward")
    miss = torch.sigmoid(-logits)
    slope = F.logsigmoid(logits).mul_(torch.sigmoid(logits)).mul_(gamma).sub_(miss)
    slope.mul_(miss.pow_(gamma))
    slope = torch.where(_is_class(input, target), slope, -slope)
    grad_input.copy_(slope.mul_(_factors(input, target, weight, alpha)))


def _is_class(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=target.device)


def _positive_logits(input: Tensor, target: Tensor, op: str) -> Tensor:
    classes = input.shape[1]
    if target.numel() and int(target.max()) > classes:
        raise RuntimeError(
            f"{op}: target has label {int(target.max())}, above {classes}, the background of "
            f"{classes} classes"
        )
    input = input.to(compute_dtype(input))
    return torch.where(_is_class(input, target), input, -input)


def _factors(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> Tensor:
    dtype = compute_dtype(input)
    factors = torch.full(input.shape, 1 - alpha, dtype=dtype, device=input.device)
    factors.masked_fill_(_is_class(input, target), alpha)
    if weight.numel():
        # mmcv reads beyond the weights for the label of background.
        background = (target < 0) | (target >= input.shape[1])
        of_sample = weight.to(dtype)[target.masked_fill(background, 0)]
        factors *= of_sample.masked_fill(background, 1)[:, None]
    return factors
