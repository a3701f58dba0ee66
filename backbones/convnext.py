"""ConvNeXt V1 and V2: the network, top to bottom, as a multi-scale backbone and as a classifier.

V1 is "A ConvNet for the 2020s" (arXiv:2201.03545), V2 "ConvNeXt V2: Co-designing and Scaling
ConvNets with Masked Autoencoders" (arXiv:2301.00808). Parameter names are those of the official
repositories.

Inside a stage tensors are (N, H, W, C): layer norm and the two linears work on rows of channels,
and the depthwise convolution reads the same memory as a channels-last (N, C, H, W). No copy is made
to change layout. `Block.branch` defines a block; `branch_by_rows` computes it faster on a CPU.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .architectures import ARCHITECTURES
from .errors import InputError
from .ops.depthwise_conv import depthwise_conv2d
from .ops.norm_mlp import norm_mlp
from .weights import load_pretrained


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W), with statistics in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, C, H, W)


class GRN(nn.Module):
    """Global response normalisation of (N, H, W, C) (V2 paper, section 3.2, algorithm 1).

    x + beta + gamma * x * norm / mean(norm), where norm (N, 1, 1, C) is the L2 norm of each
    channel's map. The norms are taken in float32: their squares overflow fp16.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=dtype)  # (N, 1, 1, C)
        scale = 1 + self.gamma * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))
        return (x * scale + self.beta).to(x.dtype)


class Block(nn.Module):
    """Depthwise 7x7, layer norm, two linears with GELU (V2: GRN) between, layer scale, residual.

    Paper, Figure 4; V2 paper, Figure 5.

    Args:
        dim: channels.
        drop_path_rate: probability in [0, 1) that a sample skips the branch (stochastic depth).
        layer_scale_init_value: initial gamma; 0 leaves layer scale out.
        use_grn: GRN after the GELU (V2).
        with_cp: recompute the branch in backward instead of keeping its activations.
    """

    def __init__(
        self,
        dim: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        use_grn: bool,
        with_cp: bool,
    ):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GRN(4 * dim) if use_grn else None
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if scaled else None
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch of (N, H, W, C)."""
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = F.gelu(self.pwconv1(self.norm(x)))  # (N, H, W, 4C)
        if self.grn is not None:
            x = self.grn(x)
        x = self.pwconv2(x)
        return x if self.gamma is None else self.gamma * x

    def branch_by_rows(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`branch` for a CPU, and the residual sum where it is given: the same, faster."""
        grn = self.grn
        return norm_mlp(
            depthwise_conv2d(x, self.dwconv.weight, self.dwconv.bias),
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            self.pwconv1.weight,
            self.pwconv1.bias,
            self.pwconv2.weight,
            self.pwconv2.bias,
            grn_gamma=None if grn is None else grn.gamma,
            grn_beta=None if grn is None else grn.beta,
            scale=self.gamma,
            residual=residual,
        )

    def goes_by_rows(self, x: Tensor) -> bool:
        """Whether `branch_by_rows` may stand in: on a CPU, with every layer as it was built.

        A hook, a parametrization or another class in a layer's place would be passed over.
        """
        if not x.is_cpu or not x.numel():
            return False
        exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
        if exporting or torch.jit.is_tracing():  # for a reader that knows PyTorch's operators only
            return False
        layers = (self.dwconv, self.norm, self.pwconv1, self.pwconv2)
        kinds = (nn.Conv2d, nn.LayerNorm, nn.Linear, nn.Linear)
        return all(
            type(layer) is kind for layer, kind in zip(layers, kinds, strict=True)
        ) and not any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
            for layer in self.children()
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C)
        if not torch.is_grad_enabled() and self.goes_by_rows(x) and not self.dropping:
            return self.branch_by_rows(x, residual=x)
        if torch.compiler.is_compiling():
            return x + self.masked_branch(x)
        kept = self.draw_kept(len(x))
        inputs = x if kept is None else x[kept.to(x.device, non_blocking=True)]
        branch = self.branch_by_rows if self.goes_by_rows(inputs) else self.branch
        if self.with_cp and torch.is_grad_enabled():
            y = checkpoint(branch, inputs, use_reentrant=False)
        else:
            y = branch(inputs)
        if not self.dropping:
            return x + y
        y = y / (1 - self.drop_path_rate)
        if kept is None:
            return x + y
        # With no sample kept this adds an empty batch: every parameter still gets a gradient, zero.
        dtype = torch.promote_types(x.dtype, y.dtype)
        kept = kept.to(x.device, non_blocking=True)
        return x.to(dtype).index_add(0, kept, y.to(dtype))

    def masked_branch(self, x: Tensor) -> Tensor:
        """The branch, zero for the samples that skip it: for a graph, which indices would break."""
        if self.with_cp and torch.is_grad_enabled():
            y = checkpoint(self.branch, x, use_reentrant=False)
        else:
            y = self.branch(x)
        if not self.dropping:
            return y
        kept = torch.rand(len(x), device=x.device) >= self.drop_path_rate
        return y * (kept / (1 - self.drop_path_rate)).to(y.dtype)[:, None, None, None]

    @property
    def dropping(self) -> bool:
        """Whether samples may skip the branch."""
        return self.training and self.drop_path_rate > 0

    def draw_kept(self, samples: int) -> Tensor | None:
        """Indices of the samples whose branch is computed, on the CPU; None for all of them.

        A dropped sample's branch would be multiplied by zero and get no gradient, so it is not
        computed. The draw is made on the CPU: issue the non-zero entries of a CUDA mask would
        wait for the GPU in every block.
        """
        if not self.dropping:
            return None
        kept = torch.rand(samples, device="cpu") >= self.drop_path_rate
        return None if kept.all() else kept.nonzero().squeeze(1)


@MODELS.register_module()
class ConvNeXt(BaseModule):
    """ConvNeXt as a backbone: images in, a normalised feature map of each stage asked for out.

    Args:
        arch: a name in `backbones.ARCHITECTURES`, or `dict(depths=..., dims=...)` with blocks and
            channels of each stage.
        in_channels: channels of the image.
        use_grn: global response normalisation in every block, as in V2.
        drop_path_rate: stochastic depth rate of the last block; rises linearly from 0.
        layer_scale_init_value: initial layer scale, 0 for none. None: 1e-6, or none with `use_grn`,
            as published.
        out_indices: stages whose maps are returned, in this order; negative ones count from the
            last. Stages after the last one asked for are not built, so that no parameter goes
            without a gradient.
        frozen_stages: how many stages from the first are frozen with the stem, their downsampling
            and output norm; 0 (or -1) freezes nothing.
        with_cp: activation checkpointing of every block.
        pad_input: pad right and bottom with zeros to the next multiple of the coarsest stride.
            Without it the last rows and columns of other sizes reach no map, as in the official
            network; this is said once.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` loads ConvNeXt weights of any known
            layout or raises (see `backbones.weights`); anything else is mmengine's.

    Raises:
        InputError: an unknown or inconsistent architecture, index, rate or size.
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
        frozen_stages: int = 0,
        with_cp: bool = False,
        pad_input: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        self.depths, self.dims = _depths_and_dims(arch)
        num_stages = len(self.depths)
        self.out_indices = _resolve_indices(out_indices, num_stages)
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"ConvNeXt: drop_path_rate {drop_path_rate} is not in [0, 1)")
        if not -1 <= frozen_stages <= num_stages:
            raise InputError(f"ConvNeXt: frozen_stages {frozen_stages} is not in 0..{num_stages}")
        if layer_scale_init_value is None:
            layer_scale_init_value = 0.0 if use_grn else 1e-6
        self.frozen_stages = max(frozen_stages, 0)
        self.pad_input = pad_input
        self.fused = False  # a copy made by `fuse`
        self.fused_dtype: torch.dtype | None = None
        self._size_warned = False

        built = max(self.out_indices) + 1
        self.stride = 4 * 2 ** (built - 1)
        stem = nn.Sequential(
            nn.Conv2d(in_channels, self.dims[0], kernel_size=4, stride=4),
            LayerNorm2d(self.dims[0], eps=1e-6),
        )
        self.downsample_layers = nn.ModuleList([stem])
        for i in range(1, built):
            self.downsample_layers.append(
                nn.Sequential(
                    LayerNorm2d(self.dims[i - 1], eps=1e-6),
                    nn.Conv2d(self.dims[i - 1], self.dims[i], kernel_size=2, stride=2),
                )
            )

        self.stages = nn.ModuleList()
        last_block = max(sum(self.depths) - 1, 1)
        for i in range(built):
            first = sum(self.depths[:i])
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(
                            self.dims[i],
                            drop_path_rate * (first + j) / last_block,
                            layer_scale_init_value,
                            use_grn,
                            with_cp,
                        )
                        for j in range(self.depths[i])
                    )
                )
            )

        for i in sorted(self.out_indices):
            self.add_module(f"norm{i}", LayerNorm2d(self.dims[i], eps=1e-6))

        self.apply(_init_weights)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, dims[i], H // s, W // s) of images (N, in_channels, H, W).

        One for each of `out_indices`; s is 4, 8, 16, 32 for stages 0 to 3. With `pad_input` the
        sizes are rounded up. Memory is channels-last.
        """
        with self._precision(x):
            maps = {
                i: getattr(self, f"norm{i}")(x)
                for i, x in enumerate(self.forward_stages(x))
                if i in self.out_indices
            }
        return tuple(maps[i] for i in self.out_indices)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """The output (N, dims[i], H // s, W // s) of each stage in turn, before its norm."""
        x = self._fit_size(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, C, H, W)
            yield x

    def _fit_size(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if torch.compiler.is_exporting():  # of any size: no branch on it
            return self._pad(x) if self.pad_input else x
        rows, columns = height % self.stride, width % self.stride
        if rows == columns == 0:
            return x
        if self.pad_input:
            return self._pad(x)
        if min(height, width) < self.stride:
            raise InputError(
                f"ConvNeXt: a {height}x{width} image is smaller than the coarsest stride, "
                f"{self.stride}; use pad_input=True or larger images"
            )
        if not self._size_warned:
            self._size_warned = True
            warnings.warn(
                f"ConvNeXt: {height}x{width} is not a multiple of {self.stride}: the last "
                f"{height % 4} rows and {width % 4} columns reach no map, and the coarsest map "
                f"leaves out {rows} rows and {columns} columns, as in the official network; "
                "pad_input=True pads instead (said once)",
                stacklevel=2,
            )
        return x

    def _pad(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride))

    def _freeze_stages(self) -> None:
        for i in range(min(self.frozen_stages, len(self.stages))):
            for module in (
                self.downsample_layers[i],
                self.stages[i],
                getattr(self, f"norm{i}", None),
            ):
                if module is not None:
                    module.eval().requires_grad_(False)

    def fuse(self, dtype: torch.dtype = torch.float32) -> "ConvNeXt":
        """A copy for inference: layer scale in the second linear, convolutions and linears cast.

        It computes what this network computes, in bfloat16 what it computes under autocast, without
        casting the weights in every call. This network and its state dict stay as they are.

        Args:
            dtype: float32 or bfloat16. In float16 a layer scale of 1e-6 would be lost.

        Raises:
            InputError: another dtype.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise InputError(f"ConvNeXt.fuse: {dtype} is neither torch.float32 nor torch.bfloat16")
        network = deepcopy(self).eval().requires_grad_(False)
        for stage in network.stages:
            for block in stage:
                if block.gamma is not None:
                    block.pwconv2.weight.mul_(block.gamma[:, None])
                    block.pwconv2.bias.mul_(block.gamma)
                    block.gamma = None
        if dtype != torch.float32:
            network.fused_dtype = dtype
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.to(dtype)
        network.fused = True
        return network

    def _precision(self, x: Tensor) -> AbstractContextManager:
        if self.fused_dtype is None:
            return nullcontext()
        return torch.autocast(x.device.type, self.fused_dtype)

    def train(self, mode: bool = True) -> "ConvNeXt":
        """Switch between training and evaluation; frozen stages stay in evaluation.

        Raises:
            InputError: a network made by `fuse` is asked to train.
        """
        if mode and self.fused:
            raise InputError("ConvNeXt: a fused copy is for inference; train the network itself")
        super().train(mode)
        self._freeze_stages()
        return self

    def init_weights(self) -> None:
        """Carry out `init_cfg`; without one the weights drawn at construction stay."""
        if isinstance(self.init_cfg, dict) and self.init_cfg["type"] == "Pretrained":
            if not self.is_init:
                load_pretrained(self, **{k: v for k, v in self.init_cfg.items() if k != "type"})
                self.is_init = True
        elif self.init_cfg:
            super().init_weights()


@MODELS.register_module()
class ConvNeXtClassifier(ConvNeXt):
    """ConvNeXt with global average pooling, layer norm and a linear head: images to class logits.

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
            init_cfg=init_cfg,
        )
        # The official classifier has one norm, called `norm`, and applies it after pooling.
        self.norm = nn.LayerNorm(self.dims[-1], eps=1e-6)
        delattr(self, f"norm{self.out_indices[0]}")
        self.head = nn.Linear(self.dims[-1], num_classes)
        _init_weights(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        with self._precision(x):
            *_, x = self.forward_stages(x)
            return self.head(self.norm(x.mean(dim=(-2, -1))))


def _init_weights(module: nn.Module) -> None:
    # The paper's appendix prints a deviation of 0.2; the official code uses 0.02.
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _depths_and_dims(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise InputError(
                f"ConvNeXt: unknown arch {arch!r}; known are {', '.join(ARCHITECTURES)}, "
                "or give dict(depths=..., dims=...)"
            )
        arch = ARCHITECTURES[arch]
    if set(arch) != {"depths", "dims"}:
        raise InputError(f"ConvNeXt: arch needs the keys depths and dims, not {sorted(arch)}")
    depths, dims = tuple(arch["depths"]), tuple(arch["dims"])
    if len(depths) != len(dims) or not depths or min(depths + dims) < 1:
        raise InputError(
            f"ConvNeXt: depths {depths} and dims {dims} must be as many positive integers each"
        )
    return depths, dims


def _resolve_indices(indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    resolved = tuple(i + num_stages if i < 0 else i for i in indices)
    in_range = all(0 <= i < num_stages for i in resolved)
    if not resolved or not in_range or len(set(resolved)) < len(resolved):
        raise InputError(
            f"ConvNeXt: out_indices {tuple(indices)} must name different stages of {num_stages}"
        )
    return resolved
