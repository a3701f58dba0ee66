"""Define ConvNeXt V1 and V2, top to bottom, as a multi-scale backbone and as a classifier.

V1 is "A ConvNet for the 2020s" (arXiv:2201.03545), V2 "ConvNeXt V2: Co-designing and Scaling
ConvNets with Masked Autoencoders" (arXiv:2301.00808). Parameters have their official names.

Inside a stage tensors are (N, H, W, C): layer norm and the two linears work on rows of channels,
and the depthwise convolution reads the same memory as a channels-last (N, C, H, W). No copy is made
to change layout. `Block.branch` defines a block; `BlockPaths` computes it faster.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .architectures import depths_and_dims
from .backbone import Backbone, LayerNorm2d, block_rates, init_layers
from .block_paths import BlockPaths, check_paths
from .ops.depthwise_layout import Layout, arrange
from .ops.grn import global_response_norm
from .ops.stochastic_depth import add_branch
from .weights import load_pretrained


class GRN(nn.Module):
    """Apply global response normalisation to (N, H, W, C); see `global_response_norm`."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return global_response_norm(x, self.gamma, self.beta)


class Block(BlockPaths, nn.Module):
    """Compute a ConvNeXt block: depthwise 7x7, layer norm, two linears with GELU, residual.

    Paper, Figure 4; V2 paper, Figure 5.

    Args:
        dim: channels.
        drop_path_rate: probability in [0, 1) that a sample skips the branch (stochastic depth).
        layer_scale_init_value: initial gamma; 0 leaves layer scale out.
        use_grn: GRN after the GELU (V2).
        with_cp: recompute the branch in backward instead of keeping its activations.
        dilation: dilation of the depthwise convolution.
        kernels, depthwise_layout: as in `ConvNeXt`.
    """

    def __init__(
        self,
        dim: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        use_grn: bool,
        with_cp: bool,
        dilation: int = 1,
        kernels: Literal["triton"] | None = None,
        depthwise_layout: Layout | None = None,
    ):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GRN(4 * dim) if use_grn else None
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if scaled else None
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp
        self.kernels = kernels
        self.depthwise_layout = depthwise_layout

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C)
        drop_rate = self.drop_path_rate if self.training else 0.0
        fastest, adds = self.fastest_path(x)
        if adds and not drop_rate:
            return fastest(x, residual=x)
        branch = self.fastest_branch
        if self.with_cp and torch.is_grad_enabled():
            # A branch draws nothing: no generator's state is kept.
            branch = partial(checkpoint, branch, use_reentrant=False, preserve_rng_state=False)
        return add_branch(x, cast("Callable[[Tensor], Tensor]", branch), drop_rate)

    def branch(self, x: Tensor) -> Tensor:
        """Compute the residual branch of (N, H, W, C) by calling its layers, hooks included."""
        x = arrange(x.permute(0, 3, 1, 2), self.dwconv, self.depthwise_layout)
        x = self.dwconv(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = F.gelu(self.pwconv1(self.norm(x)))  # (N, H, W, 4C)
        if self.grn is not None:
            x = self.grn(x)
        x = self.pwconv2(x)
        return x if self.gamma is None else self.gamma * x

    def layers(self) -> list[tuple[nn.Module, type[nn.Module]]]:
        """Return the layers that a fused path passes over, and the class of each."""
        layers = [(self.dwconv, nn.Conv2d), (self.norm, nn.LayerNorm), (self.pwconv1, nn.Linear)]
        return layers + [(self.pwconv2, nn.Linear)] + [(self.grn, GRN)] * (self.grn is not None)


@MODELS.register_module()
class ConvNeXt(Backbone):
    """Compute the normalised feature maps of the requested stages of a ConvNeXt.

    Args:
        arch: a name in `backbones.ARCHITECTURES`, or `dict(depths=..., dims=...)` with blocks and
            channels of each stage.
        in_channels: channels of the image.
        use_grn: global response normalisation in every block, as in V2.
        drop_path_rate: stochastic depth rate of the last block; rises linearly from 0.
        layer_scale_init_value: initial layer scale, 0 for none. None: 1e-6, or none with `use_grn`,
            as published.
        out_indices: stages whose maps are returned, in this order; negative ones count from the
            last. Later stages are not built. A neck or head has to read the last map; output norms
            of other maps that nobody reads get gradients of zero.
        output_stride: 8, 16 or 32; stages beyond it keep that resolution and dilate their
            convolutions instead, as timm's do.
        frozen_stages: how many stages from the first are frozen with the stem, their downsampling
            and output norm; 0 (or -1) freezes nothing.
        with_cp: activation checkpointing of every block.
        pad_input: pad right and bottom with zeros to the next multiple of the coarsest stride. The
            official network leaves out what is beyond one, and so does this one, with a warning.
        contiguous_maps: return maps in the default memory format, for heads that call `.view` on
            what they compute (CenterNet, DMNet); channels-last is free, and faster for the others.
        kernels: "triton" computes undilated blocks on a GPU by fused kernels, never timed so far.
        depthwise_layout: how a GPU convolves depthwise: "channels_last" (None), "contiguous" or
            "measured", which times both for each shape and dtype.
        pretrained: None, which mmseg's base configs give.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` loads ConvNeXt weights of any known
            layout or raises (see `backbones.weights`); anything else is mmengine's.

    Raises:
        InputError: an unknown or inconsistent architecture, index, rate, stride or size.
    """

    def __init__(
        self,
        arch: str | dict = "tiny",
        *,
        in_channels: int = 3,
        use_grn: bool = False,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_stride: int | None = None,
        frozen_stages: int = 0,
        with_cp: bool = False,
        pad_input: bool = False,
        contiguous_maps: bool = False,
        kernels: Literal["triton"] | None = None,
        depthwise_layout: Layout | None = None,
        pretrained: None = None,
        init_cfg: dict | list | None = None,
    ):
        depths, dims = depths_and_dims(arch)
        super().__init__(
            len(depths),
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            pad_input=pad_input,
            contiguous_maps=contiguous_maps,
            pretrained=pretrained,
            init_cfg=init_cfg,
        )
        if output_stride not in (None, 8, 16, 32):
            raise self._refusal("output_stride", f"{output_stride} is none of 8, 16 and 32")
        check_paths(kernels, depthwise_layout, type(self).__name__)
        self.depths, self.dims = depths, dims
        published = 0.0 if use_grn else 1e-6
        scale = published if layer_scale_init_value is None else layer_scale_init_value

        conv = nn.Conv2d(in_channels, dims[0], kernel_size=4, stride=4)
        stem = nn.Sequential(conv, LayerNorm2d(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        self.stages = nn.ModuleList()
        rates = iter(block_rates(drop_path_rate, sum(depths)))
        self.stride, dilation = 4, 1
        for i in range(self.built):
            if i > 0:
                halved = output_stride is None or self.stride < output_stride
                stride, padding = (2, 0) if halved else (1, "same")
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, stride, padding, dilation)
                self.stride *= stride
                dilation *= 1 if halved else 2
                norm = LayerNorm2d(dims[i - 1], eps=1e-6)
                self.downsample_layers.append(nn.Sequential(norm, conv))
            settings = (scale, use_grn, with_cp, dilation, kernels, depthwise_layout)
            blocks = (Block(dims[i], next(rates), *settings) for _ in range(depths[i]))
            self.stages.append(nn.Sequential(*blocks))
        for i in sorted(self.out_indices):
            self.add_module(f"norm{i}", LayerNorm2d(dims[i], eps=1e-6))
        self.apply(init_layers)
        self._freeze()

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output (N, dims[i], H // s, W // s) of each stage in turn, before its norm."""
        x = self._fit_size(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, C, H, W)
            yield x

    def load(self, checkpoint: str, **options) -> None:
        """Load weights as `backbones.weights.load_pretrained` does."""
        load_pretrained(self, checkpoint, **options)


@MODELS.register_module()
class ConvNeXtClassifier(ConvNeXt):
    """Classify images: ConvNeXt with global average pooling, layer norm and a linear head.

    Args:
        arch: as in `ConvNeXt`, whose other arguments it takes too.
        num_classes: logits.
        head_init_scale: factor on the head's initial weights (paper, Table 5).
    """

    def __init__(
        self,
        arch: str | dict = "tiny",
        *,
        num_classes: int = 1000,
        head_init_scale: float = 1.0,
        in_channels: int = 3,
        use_grn: bool = False,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        with_cp: bool = False,
        kernels: Literal["triton"] | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(
            arch,
            in_channels=in_channels,
            use_grn=use_grn,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            out_indices=(-1,),
            with_cp=with_cp,
            kernels=kernels,
            init_cfg=init_cfg,
        )
        # The official classifier has one norm, called `norm`, and applies it after pooling.
        self.norm = nn.LayerNorm(self.dims[-1], eps=1e-6)
        delattr(self, f"norm{self.out_indices[0]}")
        self.head = nn.Linear(self.dims[-1], num_classes)
        init_layers(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        *_, x = self.forward_stages(x)
        return self.head(self.norm(x.mean(dim=(-2, -1))))
