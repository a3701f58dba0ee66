"""Write ConvNeXt for a runtime that is fastest with 1x1 convolutions and norms written out.

OpenVINO takes twice as long for linears between transpositions; docs/export.md has the figures.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import LayerNorm2d
from backbones.convnext import Block
from backbones.ops.grn import response


class WrittenNorm(nn.Module):
    """Compute a layer norm over the channels of (N, C, H, W) in elementary operators."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / torch.sqrt(x.square().mean(1, keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class ConvolutionalBlock(nn.Module):
    """Compute a `Block` of (N, H, W, C) with 1x1 convolutions for its linears."""

    def __init__(self, block: Block):
        super().__init__()
        self.dwconv, self.norm = block.dwconv, WrittenNorm(block.norm)
        self.pwconv1 = _convolution(block.pwconv1)
        self.pwconv2 = _convolution(block.pwconv2)
        self.grn, self.gamma = block.grn, block.gamma

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # between blocks two of these cancel out
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x))))
        if self.grn is not None:
            gamma, beta = self.grn.gamma.view(-1), self.grn.beta.view(-1, 1, 1)
            norms = torch.linalg.vector_norm(y, dim=(2, 3))
            y = y * response(norms, gamma)[:, :, None, None] + beta
        y = self.pwconv2(y)
        y = y if self.gamma is None else y * self.gamma[:, None, None]
        return (x + y).permute(0, 2, 3, 1)


def use_convolutions(graph: Any) -> None:
    """Replace the blocks and norms of the ConvNeXt in a graph, which must be in float32."""
    for parent in list(graph.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Block):
                setattr(parent, name, ConvolutionalBlock(child))
            elif isinstance(child, LayerNorm2d):
                setattr(parent, name, WrittenNorm(child))


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    """Return a linear as a 1x1 convolution, whose weight is stored as one in a file."""
    convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    weight = linear.weight.detach()[:, :, None, None]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = linear.bias
    return convolution
