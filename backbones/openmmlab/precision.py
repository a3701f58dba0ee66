"""Configure precision: autocast of evaluation, TF32 on a GPU, loss scalers of training."""

from contextlib import AbstractContextManager, nullcontext
from inspect import isclass

import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def inference_autocast(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context in which a model predicts in `dtype`; its weights stay float32.

    mmengine's loops know float16 alone, and a predictor has no loop.
    """
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)


def set_tf32(env_cfg: dict | None) -> None:
    """Let a GPU multiply float32 in TF32, in linears and in convolutions, as `env_cfg.tf32` says.

    TF32 keeps float32's range and 10 bits of its mantissa. Without the key PyTorch's own choice
    stays, which is TF32 for convolutions alone. Nothing else computes in it, and no CPU does.
    """
    tf32 = (env_cfg or {}).get("tf32")
    if tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(tf32)


def without_bfloat16_scaler(optim_wrapper: dict) -> dict:
    """Return the config of an optimizer wrapper, without a loss scaler if it trains in bfloat16.

    bfloat16 has float32's range. mmengine's default, a dynamic scaler whatever the dtype, doubles
    its scale every 2000 steps until gradients overflow and steps are skipped. A `loss_scale` that
    the config sets is kept.
    """
    kind = optim_wrapper.get("type")
    kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if not isclass(kind) or not issubclass(kind, AmpOptimWrapper) or "loss_scale" in optim_wrapper:
        return optim_wrapper
    if optim_wrapper.get("dtype") not in ("bfloat16", torch.bfloat16):
        return optim_wrapper
    changed = optim_wrapper.copy()
    changed["loss_scale"] = dict(enabled=False)
    return changed
