"""Run a segmentor's training step on valueless tensors to predict its memory."""

from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from backbones.ops.upsampled_cross_entropy import upsampled_cross_entropy


def step_loss(model: Any, batch: Tensor, config: Config) -> Tensor:
    """Return the cross entropy of the decode head and of the auxiliary heads.

    Args:
        model: the segmentor in training mode.
        batch: images (N, 3, H, W).
        config: unused.
    """
    maps = model.extract_feat(batch)
    labels = torch.zeros(len(batch), *batch.shape[2:], dtype=torch.long, device=batch.device)
    by_blocks = getattr(model, "takes_loss_by_blocks", lambda head, maps: False)
    auxiliary = getattr(model, "auxiliary_head", None)
    auxiliary = list(auxiliary) if isinstance(auxiliary, nn.ModuleList) else [auxiliary]
    losses = []
    for head in (model.decode_head, *auxiliary):
        if head is not None and by_blocks(head, maps):
            # Image after image in the same memory, so that one is enough.
            losses.append(upsampled_cross_entropy(head(maps)[:1], labels[:1])[0])
        elif head is not None:
            logits = interpolate(head(maps), batch.shape[2:], mode="bilinear")
            # mmseg takes the mean after the losses of the pixels.
            losses.append(cross_entropy(logits, labels, reduction="none").mean())
    return torch.stack(losses).sum()
