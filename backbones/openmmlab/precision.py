"""Inference in automatic mixed precision, for both tasks, wherever a model is asked to predict."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn


def infer_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the model's `val_step` and `test_step` compute in `dtype`; its weights stay float32.

    mmengine's loops know fp16 alone, and a predictor has no loop. Training is not touched.
    """
    if dtype == torch.float32:
        return
    for name in ("val_step", "test_step"):
        setattr(model, name, _autocasting(getattr(model, name), model, dtype))


def _autocasting(step: Callable, model: nn.Module, dtype: torch.dtype) -> Callable:
    @wraps(step)
    def autocasting(*args, **kwargs):
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype):
            return step(*args, **kwargs)

    return autocasting
