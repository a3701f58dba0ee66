"""Provide what the networks share as backbones: output levels, freezing, input sizes, weights."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from .errors import InputError


class LayerNorm2d(nn.LayerNorm):
    """Normalise the channels of (N, C, H, W), with statistics in float32."""

    def forward(self, input: Tensor, tie: Tensor | None = None) -> Tensor:
        """Normalise (N, C, H, W); the weight depends on the zero `tie` from here on."""
        weight = self.weight if tie is None else self.weight + tie
        x = input.permute(0, 2, 3, 1)  # (N, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)


class Backbone(BaseModule):
    """Define a network of successive levels (stages, or blocks) whose maps necks and heads read.

    A subclass builds `norm{i}` for the levels in `out_indices`, sets `stride`, and writes
    `forward_stages` and `load`.

    Args:
        levels: how many there are.
        out_indices: levels whose maps are returned, in this order; negative ones count from the
            last. Levels after the last one asked for are not built.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1).
        frozen_stages: how many levels from the first are frozen; 0 (or -1) freezes nothing.
        pad_input: pad right and bottom with zeros to the next multiple of the coarsest stride.
        contiguous_maps: return maps in PyTorch's default memory format.
        pretrained: None; stock configs name it. Weights come from `init_cfg`.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` goes to `load`; anything else is
            mmengine's.

    Attributes:
        depths, dims: blocks and channels of each level, where they differ.
        stride: stride of the coarsest map.
        built: levels that are built.

    Raises:
        InputError: an index, rate or number of frozen stages out of range; a `pretrained`.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    stride: int
    downsample_layers: nn.ModuleList
    stages: nn.ModuleList

    def __init__(
        self,
        levels: int,
        *,
        out_indices: Sequence[int],
        drop_path_rate: float,
        frozen_stages: int = 0,
        pad_input: bool = False,
        contiguous_maps: bool = False,
        pretrained: None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        if pretrained is not None:
            raise self._refusal(
                "pretrained",
                f"{pretrained!r} is not supported; use init_cfg=dict(type='Pretrained', "
                "checkpoint=...) instead",
            )
        self.out_indices = tuple(i + levels if i < 0 else i for i in out_indices)
        different = len(set(self.out_indices)) == len(self.out_indices) > 0
        if not different or not all(0 <= i < levels for i in self.out_indices):
            raise self._refusal(
                "out_indices", f"{tuple(out_indices)} must name different levels of {levels}"
            )
        if not 0 <= drop_path_rate < 1:
            raise self._refusal("drop_path_rate", f"{drop_path_rate} is not in [0, 1)")
        if not -1 <= frozen_stages <= levels:
            raise self._refusal("frozen_stages", f"{frozen_stages} is not in 0..{levels}")
        self.built = max(self.out_indices) + 1
        self.frozen_stages = max(frozen_stages, 0)
        self.pad_input = pad_input
        self.contiguous_maps = contiguous_maps
        self._size_warned = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of `out_indices` of images (N, in_channels, H, W).

        Each is (N, C, H / s, W / s) with the level's channels and stride, rounded down, with
        `pad_input` up. Memory is channels-last unless `contiguous_maps` is set.
        """
        tie, maps = self._tie(), {}
        for i, level in enumerate(self.forward_stages(x)):
            if i in self.out_indices:
                maps[i] = self._normalised(level, i, tie)
        return tuple(maps[i] for i in self.out_indices)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map (N, C, H / s, W / s) of each level in turn, before its output norm."""
        raise NotImplementedError

    def load(self, checkpoint: str, **options: Any) -> None:
        """Load pretrained weights, all of them or none; `init_cfg` holds the arguments."""
        raise NotImplementedError

    @property
    def rounding(self) -> int:
        """Return the size multiple beyond which rows and columns reach no output position."""
        return self.stride

    def output_norm(self, level: int) -> nn.Module | None:
        """Return the norm of a level's map; None if it has none."""
        return getattr(self, f"norm{level}", None)

    def _normalised(self, x: Tensor, level: int, tie: Tensor | None) -> Tensor:
        norm = self.output_norm(level)
        if isinstance(norm, LayerNorm2d):
            x = norm(x, tie)
        elif norm is not None:
            x = norm(x) if tie is None else norm(x) + tie
        return x.contiguous() if self.contiguous_maps else x

    def _tie(self) -> Tensor | None:
        """Return a zero that depends on every output norm, so that each of them gets a gradient.

        A neck or head that leaves out some maps (`start_level=1` of an FPN) would leave the norms
        of those maps without gradients, and DistributedDataParallel would stop at its second step.
        Through this zero, which reads none of their values, they get gradients of zero.
        """
        if not (self.training and torch.is_grad_enabled()) or len(self.out_indices) < 2:
            return None
        trained = []
        for i in self.out_indices:
            norm = self.output_norm(i)
            if norm is not None:
                trained += [p[:0] for p in norm.parameters() if p.requires_grad]
        return torch.cat(trained).sum() if trained else None

    def _fit_size(self, x: Tensor) -> Tensor:
        """Pad images, or warn once about the rows and columns that the coarsest map leaves out."""
        height, width = x.shape[-2:]
        if torch.compiler.is_exporting():  # of any size: no branch on it
            return self._pad(x) if self.pad_input else x
        if self.pad_input:
            aligned = height % self.stride == width % self.stride == 0
            return x if aligned else self._pad(x)
        rows, columns = height % self.rounding, width % self.rounding
        if rows == columns == 0:
            return x
        name = type(self).__name__
        if min(height, width) < self.rounding:
            raise InputError(
                f"{name}: a {height}x{width} image is smaller than the coarsest stride, "
                f"{self.rounding}; set pad_input=True or use larger images",
                code="bad-image",
                where=name,
            )
        if not self._size_warned:
            self._size_warned = True
            warnings.warn(
                f"{name}: {height}x{width} is not a multiple of the coarsest stride, "
                f"{self.rounding}: the last {rows} rows and {columns} columns reach no position of "
                "the coarsest map, as in the official network; pad_input=True pads instead "
                "(warned once)",
                stacklevel=2,
            )
        return x

    def _pad(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride))

    def frozen_parts(self) -> Iterator[nn.Module | None]:
        """Yield the modules that stay in evaluation mode and get no gradients."""
        for i in range(min(self.frozen_stages, self.built)):
            yield self.downsample_layers[i]
            yield self.stages[i]
            yield self.output_norm(i)

    def _freeze(self) -> None:
        for module in self.frozen_parts():
            if module is not None:
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        """Switch between training and evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self) -> None:
        """Load the weights of `init_cfg`; without it, keep those drawn at construction."""
        if isinstance(self.init_cfg, dict) and self.init_cfg["type"] == "Pretrained":
            if not self.is_init:
                self.load(**{k: v for k, v in self.init_cfg.items() if k != "type"})
                self.is_init = True
        elif self.init_cfg:
            super().init_weights()

    def _refusal(self, argument: str, problem: str) -> InputError:
        text = f"{type(self).__name__}: {argument} {problem}"
        return InputError(text, code="bad-value", where=argument)


def init_layers(module: nn.Module) -> None:
    """Draw a layer's weights as ConvNeXt does; for `Module.apply`."""
    # The paper's appendix prints a standard deviation of 0.2; the official code uses 0.02.
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def block_rates(drop_path_rate: float, blocks: int) -> list[float]:
    """Return the stochastic depth rate of each block, rising linearly from 0."""
    return [drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]
