"""Copy a ConvNeXt for inference, with weights folded and cast once."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .convnext import Block
from .errors import InputError


class Fused(nn.Module):
    """Run a network for inference whose weights `fuse` has folded and cast.

    Args:
        network: what computes.
        dtype: dtype of its convolutions and linears; the rest runs as under autocast to it.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns for images (N, in_channels, H, W)."""
        if self.dtype == torch.float32:
            return self.network(x)
        with torch.autocast(x.device.type, self.dtype):
            return self.network(x)

    def train(self, mode: bool = True):
        """Stay in evaluation mode.

        Raises:
            InputError: `mode` is True.
        """
        if mode:
            raise InputError(
                "Fused: a fused copy is for inference; train the network it was made from",
                code="unsupported",
                where="Fused",
            )
        return super().train(False)


def fuse(network: nn.Module, dtype: torch.dtype = torch.float32) -> Fused:
    """Copy a ConvNeXt for inference: fold layer scale into the second linear and cast weights once.

    It computes what the network computes, in bfloat16 what it computes under autocast, without
    casting the weights in every call. The network and its state dict stay unchanged.

    Args:
        network: a `ConvNeXt` or `ConvNeXtClassifier`.
        dtype: float32 or bfloat16. In float16 a layer scale of 1e-6 would be lost.

    Raises:
        InputError: another dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(
            f"fuse: {dtype} is neither torch.float32 nor torch.bfloat16", where="dtype"
        )
    network = deepcopy(network).eval().requires_grad_(False)
    for block in network.modules():
        if isinstance(block, Block) and block.gamma is not None:
            block.pwconv2.weight.mul_(block.gamma[:, None])
            block.pwconv2.bias.mul_(block.gamma)
            block.gamma = None
    if dtype != torch.float32:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
    return Fused(network, dtype)
