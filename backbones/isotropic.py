"""Isotropic ConvNeXt: one resolution from end to end, like a plain ViT.

"A ConvNet for the 2020s" (arXiv:2201.03545), section 3.3 and Table 2: ConvNeXt's blocks at the
depths and widths of ViT-S, B and L, on 16x16 patches, without any downsampling. Parameter names are
those of models/convnext_isotropic.py in the official repository, whose files are
https://dl.fbaipublicfiles.com/convnext/convnext_iso_{small,base,large}_1k_224_ema.pth.
"""

import os
import re
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .architectures import ISOTROPIC
from .convnext import Block, LayerNorm2d
from .errors import InputError
from .weights import mismatches, read_checkpoint, state_dict

STRIDE = 16


@MODELS.register_module()
class IsotropicConvNeXt(BaseModule):
    """Isotropic ConvNeXt as a backbone: images in, maps at stride 16 out, all of one size.

    It is no pyramid. With several `out_indices` the maps differ in depth only; a neck such as
    mmseg's `Feature2Pyramid` has to make other strides of them, and no detector or segmentor with
    it is published.

    Args:
        arch: a name in `ISOTROPIC`.
        depth, dim: blocks and channels; None for the arch's.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth rate of the last block; rises linearly from 0.
        layer_scale_init_value: initial layer scale, 0 for none; None for the arch's.
        out_indices: blocks whose outputs are returned, each normalised by a norm of its own, in
            this order; negative ones count from the last. Later blocks are not built.
        frozen: the stem and all blocks, but no norm of an output.
        with_cp: activation checkpointing of every block.
        pad_input: pad right and bottom with zeros to the next multiple of 16. Without it the last
            rows and columns of other sizes reach no map, as in the official network.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` loads an official file or one of this
            network; anything else is mmengine's.

    Raises:
        InputError: an unknown arch, index or rate; an image of fewer than 16 rows or columns.
    """

    def __init__(
        self,
        arch: str = "small",
        *,
        depth: int | None = None,
        dim: int | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        out_indices: Sequence[int] = (-1,),
        frozen: bool = False,
        with_cp: bool = False,
        pad_input: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        if arch not in ISOTROPIC:
            raise InputError(
                f"IsotropicConvNeXt: unknown arch {arch!r}; known are {', '.join(ISOTROPIC)}"
            )
        depth = ISOTROPIC[arch]["depth"] if depth is None else depth
        dim = ISOTROPIC[arch]["dim"] if dim is None else dim
        if layer_scale_init_value is None:
            layer_scale_init_value = ISOTROPIC[arch]["layer_scale_init_value"]
        if depth < 1 or dim < 1:
            raise InputError(f"IsotropicConvNeXt: depth {depth} and dim {dim} must be positive")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"IsotropicConvNeXt: drop_path_rate {drop_path_rate} is not in [0, 1)")
        self.out_indices = tuple(i + depth if i < 0 else i for i in out_indices)
        different = len(set(self.out_indices)) == len(self.out_indices) > 0
        if not different or not all(0 <= i < depth for i in self.out_indices):
            raise InputError(
                f"IsotropicConvNeXt: out_indices {tuple(out_indices)} must name different blocks "
                f"of {depth}"
            )
        self.depth, self.dim = depth, dim
        self.dims = (dim,) * len(self.out_indices)
        self.frozen = frozen
        self.pad_input = pad_input
        self.stem = nn.Conv2d(in_channels, dim, kernel_size=STRIDE, stride=STRIDE)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    drop_path_rate * i / max(depth - 1, 1),
                    layer_scale_init_value,
                    use_grn=False,
                    with_cp=with_cp,
                )
                for i in range(max(self.out_indices) + 1)
            )
        )
        for i in sorted(self.out_indices):
            self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        self.apply(_init_weights)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, dim, H // 16, W // 16) of images (N, in_channels, H, W), one for each index."""
        maps = {}
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.out_indices:
                maps[i] = getattr(self, f"norm{i}")(x.permute(0, 3, 1, 2))  # (N, C, H, W)
        return tuple(maps[i] for i in self.out_indices)

    def embed(self, x: Tensor) -> Tensor:
        """The patches (N, H // 16, W // 16, dim) of images (N, in_channels, H, W)."""
        height, width = x.shape[-2:]
        if self.pad_input:
            x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))
        elif min(height, width) < STRIDE:
            raise InputError(
                f"IsotropicConvNeXt: a {height}x{width} image is smaller than a patch, {STRIDE}; "
                "use pad_input=True or larger images"
            )
        return self.stem(x).permute(0, 2, 3, 1)  # (N, H, W, C)

    def _freeze(self) -> None:
        if self.frozen:
            for module in (self.stem, self.blocks):
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "IsotropicConvNeXt":
        """Switch between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self) -> None:
        """Carry out `init_cfg`; without one the weights drawn at construction stay."""
        if isinstance(self.init_cfg, dict) and self.init_cfg["type"] == "Pretrained":
            if not self.is_init:
                load_isotropic(self, **{k: v for k, v in self.init_cfg.items() if k != "type"})
                self.is_init = True
        elif self.init_cfg:
            super().init_weights()


@MODELS.register_module()
class IsotropicConvNeXtClassifier(IsotropicConvNeXt):
    """Isotropic ConvNeXt with global average pooling, layer norm and a linear head.

    Args:
        arch: as in `IsotropicConvNeXt`, whose other arguments it takes too.
        num_classes: logits.
        head_init_scale: factor on the head's initial weights.
    """

    def __init__(
        self,
        arch: str = "small",
        *,
        num_classes: int = 1000,
        head_init_scale: float = 1.0,
        depth: int | None = None,
        dim: int | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(
            arch,
            depth=depth,
            dim=dim,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        delattr(self, f"norm{self.depth - 1}")
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.head = nn.Linear(self.dim, num_classes)
        _init_weights(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.blocks(self.embed(x))
        return self.head(self.norm(x.mean(dim=(1, 2))))


def load_isotropic(
    model: IsotropicConvNeXt,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
) -> None:
    """Load an isotropic ConvNeXt's weights, whole or not at all, and say what they were.

    Args:
        model: the backbone or classifier to fill; untouched if anything is wrong. A backbone's
            norms keep their initial value: the classifier's one norm was trained on pooled maps.
        checkpoint: anything `read_checkpoint` reads, of the official repository or of this network.
        prefix, wrapper, sha256, replace_head: as for `load_pretrained`.

    Raises:
        InputError: the file cannot be read, or its tensors are not this network's.
    """
    tensors = state_dict(read_checkpoint(checkpoint, sha256=sha256), checkpoint, wrapper)
    marker = "blocks.0.dwconv.weight"
    prefixes = [k.removesuffix(marker) for k in tensors if k.endswith(marker)]
    prefixes = [p for p in prefixes if prefix in (None, p)]
    if len(prefixes) != 1:
        raise InputError(f"{checkpoint}: holds {len(prefixes)} isotropic ConvNeXts; one is needed")
    tensors = {
        k.removeprefix(prefixes[0]): v for k, v in tensors.items() if k.startswith(prefixes[0])
    }
    target = model.state_dict()
    # A backbone has norms of its own in place of the classifier's; either may lack the other's.
    initial = {name for name in target if name not in tensors and re.match(r"norm\d", name)}
    if replace_head:
        initial |= {name for name in target if name.startswith("head.")}
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in initial and (name in target or not _spare(name, len(model.blocks)))
    }
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        hint = "; set layer_scale_init_value" if ".gamma is" in problem else ""
        raise InputError(f"{checkpoint}: does not fit IsotropicConvNeXt: {problem}{hint}")
    model.load_state_dict(fitting, strict=False)
    print_log(f"{checkpoint}: {len(fitting)} tensors of an isotropic ConvNeXt loaded", "current")


def _spare(name: str, built: int) -> bool:
    block = re.match(r"blocks\.(\d+)\.", name)
    beside = re.match(r"(norm\d*|head)\.", name)
    return bool(beside or block and int(block[1]) >= built)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
