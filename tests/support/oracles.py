"""Random weights that matter, and the libraries that results are held against."""

import torch
from torch import nn


def randomise(module: nn.Module) -> nn.Module:
    """Give every parameter a value that matters: no zero gamma, no identity norm."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0, 0.5 if "gamma" in name or "beta" in name else 0.1)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1)
            elif parameter.ndim > 1 and "dwconv" in name:
                parameter.mul_(2)
    return module


def import_mmpretrain():
    """mmpretrain.models, which cannot be imported beside transformers 5 without this package."""
    import mmpretrain.models

    import backbones  # noqa: F401

    return mmpretrain.models
