"""Compute the loss of mmseg's decode heads on a CPU without logits at the labels' size."""

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses.cross_entropy_loss import CrossEntropyLoss, cross_entropy
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from backbones.ops.upsampled_cross_entropy import upsampled_cross_entropy


def decode_loss(
    head: Any, inputs: tuple[Tensor, ...], data_samples: list[SegDataSample]
) -> dict[str, Tensor]:
    """Return the losses and accuracy of `head.loss`, for heads that `enlarges_by_blocks` accepts.

    Pixels whose label shares the highest logit with another class count as right here; in mmseg
    either may win. Ignored pixels weigh nothing; where all are, the loss is 0 and the accuracy, as
    in mmseg, 100.

    Args:
        head: its parameters get the gradients.
        inputs: maps (N, C_i, H_i, W_i) on a CPU.
        data_samples: samples with a `gt_sem_seg` of one size.
    """
    logits = head.forward(inputs)
    labels = head._stack_batch_gt(data_samples).squeeze(1)  # (N, H, W)
    counted = labels != head.ignore_index
    # Sums without pixels are divided by this in mmseg.
    eps = torch.finfo(torch.float32).eps
    losses: dict[str, Tensor] = {}
    right = logits.new_zeros((), dtype=torch.long)
    for loss in _losses(head):
        weight = loss.class_weight
        weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
        total, right = upsampled_cross_entropy(
            logits,
            labels,
            weight,
            ignore_index=head.ignore_index,
            align_corners=head.align_corners,
        )
        if weight is not None:
            pixels = weight[labels[counted]].sum().to(total)
        else:
            pixels = counted.sum() if loss.avg_non_ignore else labels.numel()
        value = loss.loss_weight * total / (pixels + eps)
        losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
    losses["acc_seg"] = (right + eps)[None] * (100.0 / (counted.sum() + eps))
    return losses


def is_unlabelled(head: Any, data_samples: list[Any]) -> bool:
    """Return whether a batch has ignored pixels only, so that its losses may be skipped."""
    kind: Any = type(head)
    return (
        kind.loss is BaseDecodeHead.loss
        and kind.loss_by_feat is BaseDecodeHead.loss_by_feat
        and all(
            bool((sample.gt_sem_seg.data == head.ignore_index).all()) for sample in data_samples
        )
    )


def zero_loss(head: Any, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return losses of 0 with gradients of 0, under the names of `head.loss`.

    For a batch whose pixels are all ignored, mmseg's sigmoid cross entropy and Lovasz losses can be
    NaN, and Dice is 1.
    """
    logits = head.forward(inputs)
    zero = logits.sum() * 0
    return {
        **{loss.loss_name: zero for loss in _losses(head)},
        "acc_seg": logits.new_tensor([100.0]),
    }


def enlarges_by_blocks(head: Any) -> bool:
    """Return whether a head's loss is just the mean cross entropy of its enlarged logits."""
    kind: Any = type(head)
    return (
        isinstance(head, BaseDecodeHead)
        and kind.loss is BaseDecodeHead.loss
        and kind.loss_by_feat is BaseDecodeHead.loss_by_feat
        and head.sampler is None
        and all(
            type(loss) is CrossEntropyLoss
            and loss.cls_criterion is cross_entropy
            and loss.reduction == "mean"
            for loss in _losses(head)
        )
    )


def _losses(head: Any) -> list[Any]:
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]
