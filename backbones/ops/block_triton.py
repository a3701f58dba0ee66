"""Compute the branch of a ConvNeXt block by Triton's kernels, casting as autocast would."""

from typing import cast

from torch import Tensor, get_autocast_dtype, is_autocast_enabled, nn

from .depthwise_norm_triton import depthwise_norm
from .mlp_triton import mlp


def block_branch(
    x: Tensor,
    dwconv: nn.Conv2d,
    norm: nn.LayerNorm,
    pwconv1: nn.Linear,
    pwconv2: nn.Linear,
    grn_gamma: Tensor | None,
    grn_beta: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Compute residual + scale * pwconv2(grn(gelu(pwconv1(norm(dwconv(x)))))).

    Args:
        x, residual: (N, H, W, C); no residual adds none.
        dwconv, norm, pwconv1, pwconv2: layers of a block.
        grn_gamma, grn_beta: 4C elements, both or neither.
        scale: (C,), or None for no layer scale.

    Returns:
        (N, H, W, C) in the dtype that the layers would give.
    """
    device = x.device.type
    dtype = get_autocast_dtype(device) if is_autocast_enabled(device) else x.dtype
    conv = (dwconv.weight, cast(Tensor, dwconv.bias), norm.weight, norm.bias, norm.eps)
    normed = depthwise_norm(x, *conv, dtype)
    linears = (pwconv1.weight, pwconv1.bias, pwconv2.weight, pwconv2.bias)
    return mlp(
        normed,
        *(each.to(dtype) for each in linears),
        grn_gamma=grn_gamma,
        grn_beta=grn_beta,
        scale=scale,
        residual=residual,
    )
