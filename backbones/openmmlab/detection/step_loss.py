"""Run a detector's training step on valueless tensors to predict its memory."""

from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._pytree import tree_leaves

from .complexity import has_regions, region_features, region_heads, run_dense_heads


def step_loss(model: Any, batch: Tensor, config: Config) -> Tensor:
    """Return a loss of everything that a detector's heads compute in a training step.

    The heads of a two-stage detector see as many regions as their samplers draw, a quarter of them
    (`pos_fraction`) in the mask heads. What assigning boxes to predictions takes is left out.

    Args:
        model: the detector in training mode.
        batch: images (N, 3, H, W).
        config: config whose train_cfg has the samplers.
    """
    maps = model.extract_feat(batch)
    if not has_regions(model):
        outputs = run_dense_heads(model, maps, batch, _run)
        return _sum(_squares(outputs))
    losses: list[Tensor] = []
    if getattr(model, "semantic_head", None) is not None:
        losses += _squares(model.semantic_head(maps))
    if model.with_rpn:
        losses += _squares(model.rpn_head(maps))
    settings = config.model.train_cfg.rcnn
    settings = settings if isinstance(settings, list | tuple) else [settings]
    for name in ("bbox_head", "mask_head"):
        for (head, extractor), setting in zip(region_heads(model, name), settings, strict=False):
            drawn = setting.sampler.num * len(batch)
            if name == "mask_head":
                drawn = int(drawn * setting.sampler.pos_fraction)
            # Float32 and with a gradient, as RoIAlign's result.
            regions = region_features(extractor, drawn, batch) + maps[0].float().mean()
            if model.roi_head.with_shared_head:
                regions = model.roi_head.shared_head(regions)
            out = head(regions)
            if name == "mask_head":
                chosen = out[:, 0].float()
                losses.append(binary_cross_entropy_with_logits(chosen, torch.zeros_like(chosen)))
            else:
                losses += _squares(out)
    return _sum(losses)


def _run(part: str, function: Any, *inputs: Any, **named_inputs: Any) -> Any:
    return function(*inputs, **named_inputs)


def _squares(outputs: Any) -> list[Tensor]:
    return [
        out.float().square().mean()
        for out in tree_leaves(outputs)
        if isinstance(out, Tensor) and out.requires_grad
    ]


def _sum(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()
