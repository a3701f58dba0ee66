"""Define the steps from ResNet to ConvNeXt as one network."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.backbone import Backbone, LayerNorm2d, block_rates, init_layers
from backbones.ops.stochastic_depth import drop_samples

from . import designs
from .designs import Design
from .loading import load_step


class Block(nn.Module):
    """Compute a residual block of three convolutions, one of them spatial, ordered by a `Design`.

    conv1 to conv3 are in the order of computation, norm1 to norm3 follow those that have one;
    `shortcut` is the 1x1 convolution and norm of a block that changes channels or size.

    Args:
        in_channels, out_channels: channels of the block.
        hidden: channels in the middle.
        stride: stride of the spatial convolution and the shortcut.
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
            conv: dict[str, Any] = dict(kernel_size=1)
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
        """Compute the residual branch of (N, in_channels, H, W)."""
        for i in range(3):
            x = getattr(self, f"conv{i + 1}")(x)
            if i in self.normed:
                x = getattr(self, f"norm{i + 1}")(x)
            if i in self.activated:
                x = self.activation(x)
        return x if self.gamma is None else self.gamma[:, None, None] * x

    def forward(self, x: Tensor) -> Tensor:
        """Compute the sum (N, out_channels, H / stride, W / stride), sizes rounded up."""
        if self.with_cp and torch.is_grad_enabled():
            recomputed = checkpoint(
                self.branch,
                x,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_kept(self)),
            )
            y = cast(Tensor, recomputed)
        else:
            y = self.branch(x)
        if self.training and self.drop_path_rate:
            # A batch norm's statistics are those of all samples, so none is left out beforehand.
            y = drop_samples(y, self.drop_path_rate)
        x = y + (x if self.shortcut is None else self.shortcut(x))
        return self.activation(x) if self.activated_sum else x


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a batch again when a branch is recomputed."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    kept = [(norm.momentum, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).copy_(batches)


@MODELS.register_module()
class ModernizedResNet(Backbone):
    """Compute the feature maps of the requested stages of a row of the paper's roadmap.

    Maps are normalised where they would otherwise be unbounded sums: from the step `fewer_norms` on
    a block's branch does not end in a norm, so each map passes one of its own (`norm0` to `norm3`),
    of the network's kind, as ConvNeXt's do in its detectors. Earlier steps give their stages'
    outputs unchanged, as ResNets do.

    Args:
        step: a name in `STEPS`.
        regime: `resnet50`, which ends at ConvNeXt-T, or `resnet200`, which ends at ConvNeXt-B.
        design: choices that are not the step's, by their names in `Design`.
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
            multiple of the coarsest stride, and everything else rounds up. A warning says once what
            reaches no map.
        contiguous_maps, pretrained: as in `ConvNeXt`.
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
        design: dict | None = None,
        out_norms: bool | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = 0,
        norm_eval: bool = False,
        with_cp: bool = False,
        pad_input: bool = False,
        contiguous_maps: bool = False,
        pretrained: None = None,
        init_cfg: dict | list | None = None,
    ):
        chosen = designs.design(step, regime, **(design or {}))
        super().__init__(
            len(chosen.depths),
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            pad_input=pad_input,
            contiguous_maps=contiguous_maps,
            pretrained=pretrained,
            init_cfg=init_cfg,
        )
        self.step, self.regime, self.design = step, regime, chosen
        self.depths, self.dims = chosen.depths, chosen.dims
        self.norm_eval = norm_eval
        self.stride = 4 * 2 ** (self.built - 1)

        self.downsample_layers = nn.ModuleList([_stem(chosen, in_channels)])
        self.stages = nn.ModuleList()
        rates = iter(block_rates(drop_path_rate, sum(self.depths)))
        channels = chosen.width  # the stem's
        for i, dim in enumerate(self.dims[: self.built]):
            stride = 1 if i == 0 or chosen.separate_downsampling else 2
            if i and chosen.separate_downsampling:
                conv = nn.Conv2d(channels, dim, kernel_size=2, stride=2)
                self.downsample_layers.append(nn.Sequential(_norm(chosen.norm, channels), conv))
                channels = dim
            elif i:
                self.downsample_layers.append(nn.Identity())
            blocks = []
            for _ in range(self.depths[i]):
                sizes = (channels, chosen.hidden(i), dim, stride)
                blocks.append(Block(*sizes, chosen, next(rates), with_cp))
                channels, stride = dim, 1
            self.stages.append(nn.Sequential(*blocks))

        if chosen.fewer_norms if out_norms is None else out_norms:
            for i in sorted(self.out_indices):
                self.add_module(f"norm{i}", _norm(chosen.norm, self.dims[i]))

        # A branch that does not end in a norm has to begin small, as ConvNeXt's does.
        self.apply(init_layers if chosen.fewer_norms else _init_resnet)
        self._freeze()

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output (N, dims[i], H / s, W / s) of each stage in turn, before its norm."""
        x = self._fit_size(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            yield x

    @property
    def rounding(self) -> int:
        """Return the size multiple beyond which rows and columns reach no output position."""
        if self.design.separate_downsampling:
            return self.stride
        return 1 if self.design.stem == "resnet" else 4

    def train(self, mode: bool = True):
        """Switch between training and evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        if self.norm_eval:
            for part in (self.downsample_layers, self.stages):
                for module in part.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self

    def load(self, checkpoint: str | os.PathLike, **options) -> None:
        """Load weights as `load_step` does, with `{regime}` and `{step}` filled in."""
        source = os.fspath(checkpoint).replace("{regime}", self.regime).replace("{step}", self.step)
        network = f"step {self.step} of regime {self.regime}"
        load_step(self, source, network, built=self.built, **options)


@MODELS.register_module()
class ModernizedResNetClassifier(ModernizedResNet):
    """Classify images: a row of the roadmap with global average pooling and a linear head.

    `step="layer_norm", design=dict(final_norm=True)` is the step between the last two that the
    authors' anonymous code has and the tables do not (`--resnet_final_norm`).

    Args:
        step: a name in `STEPS`.
        num_classes: logits.
        head_init_scale: factor on the head's initial weights.
        The rest as in `ModernizedResNet`.
    """

    def __init__(
        self,
        step: str = "separate_downsampling",
        *,
        num_classes: int = 1000,
        head_init_scale: float = 1.0,
        regime: str = "resnet50",
        design: dict | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(
            step,
            regime=regime,
            design=design,
            out_norms=False,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            out_indices=(-1,),
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        final_norm = self.design.final_norm
        self.norm = _norm(self.design.norm, self.dims[-1]) if final_norm else None
        self.head = nn.Linear(self.dims[-1], num_classes)
        init_layers(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        *_, x = self.forward_stages(x)
        x = x.mean(dim=(-2, -1), keepdim=True)  # (N, C, 1, 1)
        return self.head((x if self.norm is None else self.norm(x)).flatten(1))


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "BN" else LayerNorm2d(channels, eps=1e-6)


def _activation(kind: str) -> nn.Module:
    return nn.ReLU(inplace=True) if kind == "relu" else nn.GELU()


def _stem(design: Design, in_channels: int) -> nn.Sequential:
    bias = design.norm != "BN"
    if design.stem == "patchify":
        conv = nn.Conv2d(in_channels, design.width, 4, 4, bias=bias)
    else:
        conv = nn.Conv2d(in_channels, design.width, 7, 2, 3, bias=bias)
    layers = [conv, _norm(design.norm, design.width)]
    if not design.fewer_activations:
        layers.append(_activation(design.activation))
    if design.stem == "resnet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers)


def _init_resnet(module: nn.Module) -> None:
    """Draw convolutions as torchvision's ResNet does; norms follow, so their scale is free."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
