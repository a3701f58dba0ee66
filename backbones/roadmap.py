"""From ResNet to ConvNeXt step by step: section 2 of the paper as one network.

"A ConvNet for the 2020s" (arXiv:2201.03545) turns a ResNet-50 into ConvNeXt-T and a ResNet-200 into
ConvNeXt-B by one change at a time (Figure 2, Tables 10 and 11). Here every change is an argument of
`ModernizedResNet`, and `STEPS` are the paper's 17 rows. Where its text leaves a detail open, the
published multiply-adds decide; they cannot tell norms and activations apart, and what was chosen
there is said at the argument.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .convnext import LayerNorm2d
from .errors import InputError
from .weights import mismatches, read_checkpoint, recognise, state_dict, to_official


@dataclass(frozen=True)
class Design:
    """The paper's design choices; the defaults are a ResNet-50's.

    Attributes:
        depths: blocks of each stage.
        width: narrow channels of the first stage, doubled in each that follows. A bottleneck's
            stage has four times as many at its ends, an inverted one's in its middle.
        stem: `resnet`, a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2, or
            `patchify`, a 4x4 convolution of stride 4; each with a norm and an activation.
        depthwise: the spatial convolution has one filter for each channel.
        block: `bottleneck`, wide-narrow-wide, or `inverted`, narrow-wide-narrow.
        spatial_first: the spatial convolution comes before both 1x1 convolutions and sees the
            block's input channels ("moving up depthwise conv").
        kernel_size: of the spatial convolution, odd.
        activation: `relu` or `gelu`.
        fewer_activations: one activation in a block, before its last convolution, and none after
            the addition or in the stem. Otherwise after each convolution's norm, the last one's
            after the addition.
        fewer_norms: one norm in a block, after the spatial convolution. A shortcut's 1x1
            convolution keeps its own: it is not one of the block's three.
        norm: `BN` or `LN`. A convolution has a bias unless a batch norm follows, which has one.
        separate_downsampling: a norm and a 2x2 convolution of stride 2 before each later stage.
            Otherwise the first block's spatial convolution has stride 2, and its shortcut a 1x1
            convolution of stride 2.
        final_norm: a norm of the pooled features before a classifier's head. The paper's text
            brings it with the separate downsampling ("one before each downsampling layer, one after
            the stem, and one after the final global average pooling").
        layer_scale_init_value: initial layer scale of each block; 0 for none.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    stem: str = "resnet"
    depthwise: bool = False
    block: str = "bottleneck"
    spatial_first: bool = False
    kernel_size: int = 3
    activation: str = "relu"
    fewer_activations: bool = False
    fewer_norms: bool = False
    norm: str = "BN"
    separate_downsampling: bool = False
    final_norm: bool = False
    layer_scale_init_value: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "depths", tuple(self.depths))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"ModernizedResNet: unknown {name} {getattr(self, name)!r}; "
                    f"known are {', '.join(known)}"
                )
        if not self.depths or min(self.depths) < 1 or self.width < 1:
            raise InputError(
                f"ModernizedResNet: depths {self.depths} and width {self.width} must be positive"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InputError(
                f"ModernizedResNet: kernel_size {self.kernel_size} must be odd and positive"
            )
        if self.layer_scale_init_value < 0:
            raise InputError(
                f"ModernizedResNet: layer_scale_init_value {self.layer_scale_init_value} is below 0"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        wide = 4 if self.block == "bottleneck" else 1
        return tuple(wide * self.width * 2**i for i in range(len(self.depths)))

    def hidden(self, stage: int) -> int:
        """Channels in the middle of a stage's blocks."""
        return self.width * 2**stage * (4 if self.block == "inverted" else 1)


CHOICES = {
    "stem": ("resnet", "patchify"),
    "block": ("bottleneck", "inverted"),
    "activation": ("relu", "gelu"),
    "norm": ("BN", "LN"),
}


class Published(NamedTuple):
    """A row of Table 10 or 11: ImageNet-1k top-1 in %, GFLOPs, and the deviation of three seeds."""

    top1: float
    gflops: float
    deviation: float | None = None


class Step(NamedTuple):
    """One row of the roadmap.

    Attributes:
        change: what is new, in words.
        choices: the design choices it sets.
        resnet50, resnet200: the published rows.
    """

    change: str
    choices: dict
    resnet50: Published
    resnet200: Published


# Where a regime's own numbers come in: they are not the same in both.
REGIMES = {
    "resnet50": {
        "resnet": dict(depths=(3, 4, 6, 3)),
        "stage_ratio": dict(depths=(3, 3, 9, 3)),
        "wider": dict(width=96),
    },
    "resnet200": {
        "resnet": dict(depths=(3, 24, 36, 3)),
        "stage_ratio": dict(depths=(3, 3, 27, 3), width=84),
        "wider": dict(width=128),
    },
}

# Tables 10 and 11, top to bottom. The gelu row stands on a kernel size of 7.
STEPS = {
    "resnet": Step(
        "ResNet, torchvision's recipe",
        {},
        Published(76.13, 4.09),
        Published(78.20, 15.01),
    ),
    "training_recipe": Step(
        "the same network, ConvNeXt's recipe",
        {},
        Published(78.82, 4.09, 0.07),
        Published(81.14, 15.01),
    ),
    "stage_ratio": Step(
        "blocks of the stages 1:1:3:1 or 1:1:9:1",
        {},
        Published(79.36, 4.53, 0.07),
        Published(81.33, 14.52),
    ),
    "patchify": Step(
        "stem of one 4x4 convolution, stride 4",
        dict(stem="patchify"),
        Published(79.51, 4.42, 0.18),
        Published(81.59, 14.38),
    ),
    "depthwise": Step(
        "depthwise 3x3 convolutions",
        dict(depthwise=True),
        Published(78.28, 2.35, 0.08),
        Published(80.54, 7.23),
    ),
    "wider": Step(
        "Swin's width",
        {},
        Published(80.50, 5.27, 0.02),
        Published(81.85, 16.76),
    ),
    "inverted_bottleneck": Step(
        "narrow-wide-narrow blocks",
        dict(block="inverted"),
        Published(80.64, 4.64, 0.03),
        Published(82.64, 15.68),
    ),
    "moved_up_depthwise": Step(
        "depthwise convolution first",
        dict(spatial_first=True),
        Published(79.92, 4.07, 0.08),
        Published(82.04, 14.63),
    ),
    "kernel_5": Step(
        "depthwise 5x5",
        dict(kernel_size=5),
        Published(80.35, 4.10, 0.08),
        Published(82.32, 14.70),
    ),
    "kernel_7": Step(
        "depthwise 7x7",
        dict(kernel_size=7),
        Published(80.57, 4.15, 0.14),
        Published(82.30, 14.81),
    ),
    "kernel_9": Step(
        "depthwise 9x9",
        dict(kernel_size=9),
        Published(80.57, 4.21, 0.06),
        Published(82.27, 14.95),
    ),
    "kernel_11": Step(
        "depthwise 11x11",
        dict(kernel_size=11),
        Published(80.47, 4.29, 0.11),
        Published(82.18, 15.13),
    ),
    "gelu": Step(
        "GELU for ReLU, from 7x7 on",
        dict(activation="gelu", kernel_size=7),
        Published(80.62, 4.15, 0.14),
        Published(82.19, 14.81),
    ),
    "fewer_activations": Step(
        "one activation in a block",
        dict(fewer_activations=True),
        Published(81.27, 4.15, 0.06),
        Published(82.71, 14.81),
    ),
    "fewer_norms": Step(
        "one norm in a block",
        dict(fewer_norms=True),
        Published(81.41, 4.15, 0.09),
        Published(83.17, 14.81),
    ),
    "layer_norm": Step(
        "layer norm for batch norm",
        dict(norm="LN"),
        Published(81.47, 4.46, 0.09),
        Published(83.35, 14.81),
    ),
    "separate_downsampling": Step(
        "2x2 convolutions between stages: ConvNeXt",
        dict(separate_downsampling=True, final_norm=True, layer_scale_init_value=1e-6),
        Published(81.97, 4.49, 0.06),
        Published(83.60, 15.35),
    ),
}

# The Transformers that the last rows of the tables compare with.
SWIN = {"resnet50": Published(81.30, 4.50), "resnet200": Published(83.50, 15.43)}


def design(step: str, regime: str = "resnet50", **choices: object) -> Design:
    """The design of a row of the roadmap, with any choice set otherwise.

    Args:
        step: a name in `STEPS`.
        regime: `resnet50` (Table 10, to ConvNeXt-T) or `resnet200` (Table 11, to ConvNeXt-B).
        choices: fields of `Design`; those that are None are the step's.

    Raises:
        InputError: an unknown step, regime or value.
    """
    if step not in STEPS:
        raise InputError(f"ModernizedResNet: unknown step {step!r}; known are {', '.join(STEPS)}")
    if regime not in REGIMES:
        raise InputError(
            f"ModernizedResNet: unknown regime {regime!r}; known are {', '.join(REGIMES)}"
        )
    settled: dict = {}
    for name, row in STEPS.items():
        settled |= row.choices | REGIMES[regime].get(name, {})
        if name == step:
            break
    return Design(**settled | {k: v for k, v in choices.items() if v is not None})


class Block(nn.Module):
    """Three convolutions of a residual branch, one of them spatial, as a `Design` orders them.

    conv1 to conv3 are in the order of computation, norm1 to norm3 follow those that have one;
    `shortcut` is the 1x1 convolution and norm of a block that changes channels or size.

    Args:
        in_channels, out_channels: of the block.
        hidden: channels in the middle.
        stride: of the spatial convolution and the shortcut.
        design: everything else.
        drop_path_rate: probability in [0, 1) that a sample skips the branch (stochastic depth).
        with_cp: recompute the branch in backward instead of keeping its activations.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        stride: int,
        design: Design,
        drop_path_rate: float,
        with_cp: bool,
    ):
        super().__init__()
        spatial = 0 if design.spatial_first else 1
        channels = [in_channels, hidden, hidden, out_channels]
        channels[spatial + 1] = channels[spatial]
        self.normed = (spatial,) if design.fewer_norms else (0, 1, 2)
        self.activated = (1,) if design.fewer_activations else (0, 1)
        self.activated_sum = not design.fewer_activations
        self.activation = _activation(design.activation)
        for i in range(3):
            conv = dict(kernel_size=1)
            if i == spatial:
                conv = dict(kernel_size=design.kernel_size, padding=design.kernel_size // 2)
                conv |= dict(stride=stride, groups=channels[i] if design.depthwise else 1)
            bias = not (i in self.normed and design.norm == "BN")
            self.add_module(
                f"conv{i + 1}", nn.Conv2d(channels[i], channels[i + 1], bias=bias, **conv)
            )
            if i in self.normed:
                self.add_module(f"norm{i + 1}", _norm(design.norm, channels[i + 1]))
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=design.norm != "BN"),
                _norm(design.norm, out_channels),
            )
        scale = design.layer_scale_init_value
        self.gamma = nn.Parameter(torch.full((out_channels,), scale)) if scale > 0 else None
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch of (N, in_channels, H, W)."""
        for i in range(3):
            x = getattr(self, f"conv{i + 1}")(x)
            if i in self.normed:
                x = getattr(self, f"norm{i + 1}")(x)
            if i in self.activated:
                x = self.activation(x)
        return x if self.gamma is None else self.gamma[:, None, None] * x

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H / stride, W / stride), rounded up, of (N, in_channels, H, W)."""
        if self.with_cp and torch.is_grad_enabled():
            y = checkpoint(
                self.branch,
                x,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_kept(self)),
            )
        else:
            y = self.branch(x)
        if self.training and self.drop_path_rate:
            # A batch norm's statistics are those of all samples, so none is left out beforehand.
            kept = torch.rand(len(x), device=x.device) >= self.drop_path_rate
            y = y * (kept / (1 - self.drop_path_rate)).to(y.dtype)[:, None, None, None]
        x = y + (x if self.shortcut is None else self.shortcut(x))
        return self.activation(x) if self.activated_sum else x


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms count a batch once: not again when a branch is recomputed."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


@MODELS.register_module()
class ModernizedResNet(BaseModule):
    """A row of the paper's roadmap as a backbone: images in, a map of each stage asked for out.

    Maps are normalised where they would otherwise be unbounded sums: from the step `fewer_norms` on
    a block's branch does not end in a norm, so each map passes one of its own (`norm0` to `norm3`),
    of the network's kind, as ConvNeXt's do in its detectors. Earlier steps give their stages'
    outputs as they are, as ResNets do.

    Args:
        step: a name in `STEPS`.
        regime: `resnet50`, which ends at ConvNeXt-T, or `resnet200`, which ends at ConvNeXt-B.
        depths, width, stem, depthwise, block, spatial_first, kernel_size, activation,
            fewer_activations, fewer_norms, norm, separate_downsampling, layer_scale_init_value: as
            in `Design`; None leaves them as the step has them.
        out_norms: whether maps are normalised; None for the rule above.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth rate of the last block; rises linearly from 0.
        out_indices: stages whose maps are returned, in this order; negative ones count from the
            last. Stages after the last one asked for are not built.
        frozen_stages: how many stages from the first are frozen with the stem, their downsampling
            and output norm; 0 (or -1) freezes nothing.
        norm_eval: batch norms keep the statistics they have, for training on few images at once;
            not those of the maps, for which a classifier's file has none.
        with_cp: activation checkpointing of every block; batch norms still count a batch once.
        pad_input: pad right and bottom with zeros to the next multiple of the coarsest stride.
            Without it sizes are rounded as the step's convolutions do: a patchify stem leaves out
            the last rows and columns off a multiple of 4, separate downsampling those off a
            multiple of the coarsest stride, and everything else rounds up. What reaches no map is
            said once.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` loads a file of this network, of
            torchvision's ResNet or of any known ConvNeXt layout, where the step is that network;
            `{regime}` and `{step}` in the path stand for the names. Anything else is mmengine's.

    Raises:
        InputError: an unknown or inconsistent step, choice, index, rate or size.
    """

    def __init__(
        self,
        step: str = "separate_downsampling",
        *,
        regime: str = "resnet50",
        depths: Sequence[int] | None = None,
        width: int | None = None,
        stem: str | None = None,
        depthwise: bool | None = None,
        block: str | None = None,
        spatial_first: bool | None = None,
        kernel_size: int | None = None,
        activation: str | None = None,
        fewer_activations: bool | None = None,
        fewer_norms: bool | None = None,
        norm: str | None = None,
        separate_downsampling: bool | None = None,
        layer_scale_init_value: float | None = None,
        out_norms: bool | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = 0,
        norm_eval: bool = False,
        with_cp: bool = False,
        pad_input: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        self.step, self.regime = step, regime
        self.design = design(
            step,
            regime,
            depths=depths,
            width=width,
            stem=stem,
            depthwise=depthwise,
            block=block,
            spatial_first=spatial_first,
            kernel_size=kernel_size,
            activation=activation,
            fewer_activations=fewer_activations,
            fewer_norms=fewer_norms,
            norm=norm,
            separate_downsampling=separate_downsampling,
            layer_scale_init_value=layer_scale_init_value,
        )
        self.depths, self.dims = self.design.depths, self.design.dims
        self.out_indices = _resolve_indices(out_indices, len(self.depths))
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"ModernizedResNet: drop_path_rate {drop_path_rate} is not in [0, 1)")
        if not -1 <= frozen_stages <= len(self.depths):
            raise InputError(
                f"ModernizedResNet: frozen_stages {frozen_stages} is not in 0..{len(self.depths)}"
            )
        self.frozen_stages = max(frozen_stages, 0)
        self.norm_eval = norm_eval
        self.pad_input = pad_input
        self._size_warned = False

        built = max(self.out_indices) + 1
        self.stride = 4 * 2 ** (built - 1)
        self.downsample_layers = nn.ModuleList([_stem(self.design, in_channels)])
        self.stages = nn.ModuleList()
        rates = torch.linspace(0, drop_path_rate, sum(self.depths), device="cpu").tolist()
        channels = self.design.width  # the stem's
        for i in range(built):
            stride = 1 if i == 0 or self.design.separate_downsampling else 2
            if i and self.design.separate_downsampling:
                self.downsample_layers.append(
                    nn.Sequential(
                        _norm(self.design.norm, channels),
                        nn.Conv2d(channels, self.dims[i], kernel_size=2, stride=2),
                    )
                )
                channels = self.dims[i]
            elif i:
                self.downsample_layers.append(nn.Identity())
            blocks = []
            for j in range(self.depths[i]):
                blocks.append(
                    Block(
                        channels,
                        self.design.hidden(i),
                        self.dims[i],
                        stride if j == 0 else 1,
                        self.design,
                        rates[sum(self.depths[:i]) + j],
                        with_cp,
                    )
                )
                channels = self.dims[i]
            self.stages.append(nn.Sequential(*blocks))

        if self.design.fewer_norms if out_norms is None else out_norms:
            for i in sorted(self.out_indices):
                self.add_module(f"norm{i}", _norm(self.design.norm, self.dims[i]))

        self.apply(_init_convnext if self.design.fewer_norms else _init_resnet)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, dims[i], H / s, W / s) of images (N, in_channels, H, W).

        One for each of `out_indices`; s is 4, 8, 16, 32 for stages 0 to 3, rounded as `pad_input`
        says.
        """
        maps = {
            i: getattr(self, f"norm{i}", nn.Identity())(x)
            for i, x in enumerate(self.forward_stages(x))
            if i in self.out_indices
        }
        return tuple(maps[i] for i in self.out_indices)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """The output (N, dims[i], H / s, W / s) of each stage in turn, before its norm."""
        x = self._fit_size(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            yield x

    def _fit_size(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.pad_input:
            return F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        coarsest = self.stride if self.design.separate_downsampling else 4
        if self.design.stem == "resnet" and not self.design.separate_downsampling:
            coarsest = 1
        if min(height, width) < coarsest:
            raise InputError(
                f"ModernizedResNet: a {height}x{width} image is smaller than the coarsest stride, "
                f"{coarsest}; use pad_input=True or larger images"
            )
        if (height % coarsest or width % coarsest) and not self._size_warned:
            self._size_warned = True
            warnings.warn(
                f"ModernizedResNet: {height}x{width} is not a multiple of {coarsest}: the coarsest "
                f"map leaves out the last rows or columns, as step {self.step} has it; "
                "pad_input=True pads instead (said once)",
                stacklevel=2,
            )
        return x

    def _freeze_stages(self) -> None:
        for i in range(min(self.frozen_stages, len(self.stages))):
            for module in (
                self.downsample_layers[i],
                self.stages[i],
                getattr(self, f"norm{i}", None),
            ):
                if module is not None:
                    module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "ModernizedResNet":
        """Switch between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for part in (self.downsample_layers, self.stages):
                for module in part.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self

    def init_weights(self) -> None:
        """Carry out `init_cfg`; without one the weights drawn at construction stay."""
        if isinstance(self.init_cfg, dict) and self.init_cfg["type"] == "Pretrained":
            if not self.is_init:
                load_step(self, **{k: v for k, v in self.init_cfg.items() if k != "type"})
                self.is_init = True
        elif self.init_cfg:
            super().init_weights()


@MODELS.register_module()
class ModernizedResNetClassifier(ModernizedResNet):
    """A row of the roadmap with global average pooling and a linear head: images to class logits.

    Args:
        step: a name in `STEPS`.
        num_classes: logits.
        head_init_scale: factor on the head's initial weights.
        final_norm: a norm of the pooled features; None for the step's choice, which is one in the
            last step only. `step="layer_norm", final_norm=True` is the step between the two that
            the authors' anonymous code has and the tables do not (`--resnet_final_norm`).
        The rest as in `ModernizedResNet`.
    """

    def __init__(
        self,
        step: str = "separate_downsampling",
        *,
        num_classes: int = 1000,
        head_init_scale: float = 1.0,
        final_norm: bool | None = None,
        regime: str = "resnet50",
        depths: Sequence[int] | None = None,
        width: int | None = None,
        stem: str | None = None,
        depthwise: bool | None = None,
        block: str | None = None,
        spatial_first: bool | None = None,
        kernel_size: int | None = None,
        activation: str | None = None,
        fewer_activations: bool | None = None,
        fewer_norms: bool | None = None,
        norm: str | None = None,
        separate_downsampling: bool | None = None,
        layer_scale_init_value: float | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(
            step,
            regime=regime,
            depths=depths,
            width=width,
            stem=stem,
            depthwise=depthwise,
            block=block,
            spatial_first=spatial_first,
            kernel_size=kernel_size,
            activation=activation,
            fewer_activations=fewer_activations,
            fewer_norms=fewer_norms,
            norm=norm,
            separate_downsampling=separate_downsampling,
            layer_scale_init_value=layer_scale_init_value,
            out_norms=False,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            out_indices=(-1,),
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        if final_norm is not None:
            self.design = dataclasses.replace(self.design, final_norm=final_norm)
        self.norm = None
        if self.design.final_norm:
            self.norm = _norm(self.design.norm, self.dims[-1])
        self.head = nn.Linear(self.dims[-1], num_classes)
        _init_convnext(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        *_, x = self.forward_stages(x)
        x = x.mean(dim=(-2, -1), keepdim=True)  # (N, C, 1, 1)
        return self.head((x if self.norm is None else self.norm(x)).flatten(1))


# (ours, theirs): torchvision's ResNet by our names, and ConvNeXt's blocks by ours.
TORCHVISION_RESNET = (
    (r"^conv1\.", "downsample_layers.0.0."),
    (r"^bn1\.", "downsample_layers.0.1."),
    (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.", ".shortcut."),
    (r"^fc\.", "head."),
)
CONVNEXT = (
    (r"\.dwconv\.", ".conv1."),
    (r"(stages\.\d+\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.pwconv1\.", ".conv2."),
    (r"\.pwconv2\.", ".conv3."),
)


def load_step(
    model: ModernizedResNet,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
) -> None:
    """Load weights into a step of the roadmap, whole or not at all, and say what they were.

    Args:
        model: the backbone or classifier to fill; untouched if anything is wrong.
        checkpoint: anything `read_checkpoint` reads, with `{regime}` and `{step}` for the model's:
            a file of this network (its classifier, a whole detector or segmentor), of torchvision's
            ResNet, or of a ConvNeXt in any known layout.
        prefix, wrapper, sha256, replace_head: as for `load_pretrained`.

    Raises:
        InputError: the file cannot be read, or its tensors are not this step's.
    """
    source = os.fspath(checkpoint).replace("{regime}", model.regime).replace("{step}", model.step)
    tensors = state_dict(read_checkpoint(source, sha256=sha256), source, wrapper)
    layout, tensors = _to_our_names(tensors, source, prefix)
    target = model.state_dict()
    built = len(model.stages)
    ignored = [name for name in tensors if name not in target and _spare(name, built)]
    # torchvision's older files have no counters of batches; a classifier has no norms of maps.
    initial = [
        name
        for name in target
        if name not in tensors
        and (name.endswith("num_batches_tracked") or re.match(r"norm\d\.", name))
    ]
    if replace_head:
        initial += [name for name in target if name.startswith("head.")]
        ignored += [name for name in tensors if name.startswith("head.")]
    fitting = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        raise InputError(
            f"{source}: does not fit step {model.step} of regime {model.regime}: {problem}"
        )
    model.load_state_dict(fitting, strict=False)
    line = f"{source}: {len(fitting)} tensors loaded ({layout}) into step {model.step}"
    if norms := sorted({n.split(".")[0] for n in initial if re.match(r"norm\d\.", n)}):
        line += f"; not in it, left at their initial value: {', '.join(norms)}"
    print_log(line, logger="current")


def _to_our_names(
    tensors: dict[str, Tensor], source: str, prefix: str | None
) -> tuple[str, dict[str, Tensor]]:
    """The layout of a state dict, and its tensors by our names and in our shapes."""
    ours = "stages.0.0.conv1.weight"
    if "layer1.0.conv1.weight" in tensors:
        return "torchvision's ResNet", _renamed(tensors, TORCHVISION_RESNET)
    prefixes = [key.removesuffix(ours) for key in tensors if key.endswith(ours)]
    if prefixes and prefix in (None, *prefixes):
        prefix = prefixes[0] if prefix is None else prefix
        return "its own layout", {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
    dialect, prefix = recognise(tensors, source, prefix)
    official, _ = to_official(tensors, dialect, prefix, source)
    pointwise = re.compile(r"\.pwconv\d\.weight$")
    shaped = {k: v[:, :, None, None] if pointwise.search(k) else v for k, v in official.items()}
    return f"ConvNeXt, {dialect.name} layout", _renamed(shaped, CONVNEXT)


def _renamed(tensors: dict[str, Tensor], rules: tuple) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _spare(name: str, built: int) -> bool:
    """Whether a network of fewer stages, or without a classifier, may leave a tensor out."""
    if re.fullmatch(r"(norm\d*|head)\.\w+", name):
        return True
    match = re.match(r"(?:downsample_layers|stages)\.(\d+)\.", name)
    return bool(match) and int(match[1]) >= built


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "BN" else LayerNorm2d(channels, eps=1e-6)


def _activation(kind: str) -> nn.Module:
    return nn.ReLU(inplace=True) if kind == "relu" else nn.GELU()


def _stem(design: Design, in_channels: int) -> nn.Sequential:
    bias = design.norm != "BN"
    if design.stem == "patchify":
        layers = [nn.Conv2d(in_channels, design.width, 4, 4, bias=bias)]
    else:
        layers = [nn.Conv2d(in_channels, design.width, 7, 2, 3, bias=bias)]
    layers.append(_norm(design.norm, design.width))
    if not design.fewer_activations:
        layers.append(_activation(design.activation))
    if design.stem == "resnet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers)


def _init_resnet(module: nn.Module) -> None:
    """He's, as torchvision's ResNet: every convolution is normalised, its scale does not matter."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_convnext(module: nn.Module) -> None:
    """ConvNeXt's, where a branch is not normalised at its end and has to begin small."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _resolve_indices(indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    resolved = tuple(i + num_stages if i < 0 else i for i in indices)
    in_range = all(0 <= i < num_stages for i in resolved)
    if not resolved or not in_range or len(set(resolved)) < len(resolved):
        raise InputError(
            f"ModernizedResNet: out_indices {tuple(indices)} must name different stages of "
            f"{num_stages}"
        )
    return resolved
