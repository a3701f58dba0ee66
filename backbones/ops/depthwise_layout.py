"""Choose the memory layout in which a GPU convolves depthwise: by hand, or by timing both.

PyTorch passes channels-last maps to cuDNN and computes contiguous ones with its own kernel. Which
is faster depends on dtype, shape, GPU and version; docs/gpu.md says what is known.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError

Layout = Literal["channels_last", "contiguous", "measured"]
LAYOUTS = ("channels_last", "contiguous", "measured")
# The faster layout by dtype, shape of the map, and whether gradients are wanted.
CHOICES: dict[tuple[torch.dtype, torch.Size, bool], str] = {}
CALLS = 10  # timed of each layout, after three that are not
GAIN = 0.95  # of the time of channels-last, which takes no copies


def check_layout(layout: str | None, name: str) -> None:
    """Check the argument `depthwise_layout` of a network called name.

    Raises:
        InputError: an unknown value.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(
            f"{name}: depthwise_layout {layout!r} is none of {', '.join(LAYOUTS)} and None",
            code="bad-value",
            where="depthwise_layout",
        )


def arrange(x: Tensor, conv: nn.Conv2d, layout: str | None) -> Tensor:
    """Return x in the layout in which a depthwise convolution is to compute it on a GPU.

    Args:
        x: (N, C, H, W), channels-last.
        conv: the convolution.
        layout: as in `ConvNeXt`. "measured" times both when a shape and dtype is met for the first
            time, which makes the host wait; in a compiled graph, and where results are to repeat
            (`torch.use_deterministic_algorithms`), it is channels-last.
    """
    if not x.is_cuda or not x.numel():
        return x
    if layout == "measured":
        if torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
            return x
        cast = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda") if cast else x.dtype
        key = (dtype, x.shape, torch.is_grad_enabled())
        if key not in CHOICES:
            channels_last, contiguous = (_milliseconds(x, conv, each) for each in LAYOUTS[:2])
            CHOICES[key] = LAYOUTS[contiguous < GAIN * channels_last]
        layout = CHOICES[key]
    return x.contiguous() if layout == "contiguous" else x


def _milliseconds(x: Tensor, conv: nn.Conv2d, layout: str) -> float:
    """Time a convolution and, if gradients are enabled, its gradients, with the copies it takes."""
    gradients = torch.is_grad_enabled()
    given = [x, conv.weight] + ([] if conv.bias is None else [conv.bias])
    leaves = [each.detach().requires_grad_(gradients) for each in given]

    def call() -> None:
        maps = leaves[0].contiguous() if layout == "contiguous" else leaves[0]
        bias = leaves[2] if len(leaves) > 2 else None
        y = F.conv2d(maps, leaves[1], bias, 1, conv.padding, conv.dilation, conv.groups)
        y = y.permute(0, 2, 3, 1).contiguous()  # as the norm takes it
        if gradients:
            torch.autograd.grad(y, leaves, torch.ones_like(y))

    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
