"""Compute a ConvNeXt block's branch on the fastest path for its input, with the same result."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .ops.cpu_path import cpu_path_applies, unmodified
from .ops.depthwise_conv import depthwise_conv2d
from .ops.depthwise_layout import check_layout
from .ops.norm_mlp import norm_mlp
from .ops.triton_path import check_kernels, triton_path_applies


def check_paths(kernels: str | None, depthwise_layout: str | None, name: str) -> None:
    """Check the arguments by which a network called name chooses its paths.

    Raises:
        InputError: an unknown value, or triton is asked for and not installed.
    """
    check_kernels(kernels, name)
    check_layout(depthwise_layout, name)


class BlockPaths:
    """Choose how `Block.branch` is computed: by its layers, on a CPU or by Triton's kernels."""

    dwconv: nn.Conv2d
    norm: nn.LayerNorm
    pwconv1: nn.Linear
    pwconv2: nn.Linear
    grn: Any
    gamma: Tensor | None
    with_cp: bool
    kernels: str | None
    branch: Callable[[Tensor], Tensor]
    layers: Callable[[], list[tuple[nn.Module, type[nn.Module]]]]

    def cpu_branch(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute `branch`, and the residual sum if a residual is given, faster on a CPU."""
        x = depthwise_conv2d(x, self.dwconv.weight, self.dwconv.bias)
        norm, first, second = self.norm, self.pwconv1, self.pwconv2
        grn = {} if self.grn is None else dict(grn_gamma=self.grn.gamma, grn_beta=self.grn.beta)
        weights = (norm.weight, norm.bias, norm.eps, first.weight, first.bias, second.weight)
        return norm_mlp(x, *weights, second.bias, **grn, scale=self.gamma, residual=residual)

    def triton_branch(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute `branch`, and the residual sum if a residual is given, by Triton's kernels."""
        from .ops.block_triton import block_branch  # imports triton

        layers = (self.dwconv, self.norm, self.pwconv1, self.pwconv2)
        grn = (None, None) if self.grn is None else (self.grn.gamma, self.grn.beta)
        return block_branch(x, *layers, *grn, self.gamma, residual)

    def takes_cpu_path(self, x: Tensor) -> bool:
        """Return whether `cpu_branch` may be used: on a CPU, with every layer unmodified."""
        compiling = not torch.is_grad_enabled()
        plain = self.dwconv.dilation == (1, 1)
        return plain and cpu_path_applies(x, layers=self.layers(), compiling=compiling)

    def takes_triton(self, x: Tensor) -> bool:
        """Return whether `triton_branch` is used: as asked for, with every layer unmodified."""
        plain = self.kernels == "triton" and self.dwconv.dilation == (1, 1)
        return plain and triton_path_applies(x) and unmodified(self.layers())

    def fastest_branch(self, x: Tensor) -> Tensor:
        """Compute the branch in the fastest way for x, which stochastic depth may have emptied."""
        return self.fastest_path(x)[0](x)

    def fastest_path(self, x: Tensor) -> tuple[Callable[..., Tensor], bool]:
        """Return the fastest way to compute the branch of x; whether it can add the residual."""
        if self.takes_triton(x):
            return self.triton_branch, not (self.with_cp and torch.is_grad_enabled())
        if self.takes_cpu_path(x):
            return self.cpu_branch, not torch.is_grad_enabled()
        return self.branch, False
