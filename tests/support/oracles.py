"""Draw random weights that matter, and import the libraries that results are compared with."""

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
    """Return mmpretrain.models, which alone does not import beside transformers 5."""
    import mmpretrain.models

    import backbones  # noqa: F401

    return mmpretrain.models
