"""Define isotropic ConvNeXt: one resolution throughout, like a plain ViT.

"A ConvNet for the 2020s" (arXiv:2201.03545), section 3.3 and Table 2: ConvNeXt's blocks at the
depths and widths of ViT-S, B and L, on 16x16 patches, without any downsampling. Parameter names are
those of models/convnext_isotropic.py in the official repository, whose files are
https://dl.fbaipublicfiles.com/convnext/convnext_iso_{small,base,large}_1k_224_ema.pth.
"""

import os
import re
from collections.abc import Iterator, Sequence

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .architectures import ISOTROPIC
from .backbone import Backbone, LayerNorm2d, block_rates, init_layers
from .convnext import Block
from .errors import InputError
from .weights import mismatches, read_checkpoint, state_dict

STRIDE = 16


@MODELS.register_module()
class IsotropicConvNeXt(Backbone):
    """Compute the maps of an isotropic ConvNeXt, all at stride 16.

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
        frozen: freeze the stem and all blocks, but no norm of an output.
        with_cp: activation checkpointing of every block.
        pad_input, contiguous_maps, pretrained: as in `ConvNeXt`.
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
        contiguous_maps: bool = False,
        pretrained: None = None,
        init_cfg: dict | list | None = None,
    ):
        if arch not in ISOTROPIC:
            raise InputError(
                f"IsotropicConvNeXt: unknown arch {arch!r}; known are {', '.join(ISOTROPIC)}",
                code="unknown-name",
                where="arch",
            )
        depth = int(ISOTROPIC[arch]["depth"]) if depth is None else depth
        dim = int(ISOTROPIC[arch]["dim"]) if dim is None else dim
        if layer_scale_init_value is None:
            layer_scale_init_value = ISOTROPIC[arch]["layer_scale_init_value"]
        if depth < 1 or dim < 1:
            raise InputError(
                f"IsotropicConvNeXt: depth {depth} and dim {dim} must be positive",
                code="bad-value",
                where="depth" if depth < 1 else "dim",
            )
        super().__init__(
            depth,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            pad_input=pad_input,
            contiguous_maps=contiguous_maps,
            pretrained=pretrained,
            init_cfg=init_cfg,
        )
        self.depth, self.dim = depth, dim
        self.dims = (dim,) * len(self.out_indices)
        self.stride = STRIDE
        self.frozen = frozen
        self.stem = nn.Conv2d(in_channels, dim, kernel_size=STRIDE, stride=STRIDE)
        rates = block_rates(drop_path_rate, depth)[: self.built]
        self.blocks = nn.Sequential(
            *(Block(dim, rate, layer_scale_init_value, False, with_cp) for rate in rates)
        )
        for i in sorted(self.out_indices):
            self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        self.apply(init_layers)
        self._freeze()

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output (N, dim, H // 16, W // 16) of each block in turn, before its norm."""
        x = self.stem(self._fit_size(x)).permute(0, 2, 3, 1)  # (N, H, W, C)
        for block in self.blocks:
            x = block(x)
            yield x.permute(0, 3, 1, 2)  # (N, C, H, W)

    def frozen_parts(self) -> Iterator[nn.Module]:
        """Yield the stem and all blocks if they are frozen."""
        if self.frozen:
            yield from (self.stem, self.blocks)

    def load(self, checkpoint: str, **options) -> None:
        """Load weights as `load_isotropic` does."""
        load_isotropic(self, checkpoint, **options)


@MODELS.register_module()
class IsotropicConvNeXtClassifier(IsotropicConvNeXt):
    """Classify images: isotropic ConvNeXt, global average pooling, layer norm and a linear head.

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
        init_layers(self.head)
        self.head.weight.data.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        *_, x = self.forward_stages(x)
        return self.head(self.norm(x.mean(dim=(-2, -1))))


def load_isotropic(
    model: IsotropicConvNeXt,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
) -> None:
    """Load an isotropic ConvNeXt's weights, all or none, and log where they come from.

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
        raise InputError(
            f"{checkpoint}: holds {len(prefixes)} isotropic ConvNeXts; one is needed",
            code="unknown-layout",
            where=checkpoint,
        )
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
        raise InputError(
            f"{checkpoint}: does not fit IsotropicConvNeXt: {problem}{hint}",
            code="checkpoint-mismatch",
            where=checkpoint,
        )
    model.load_state_dict(fitting, strict=False)
    print_log(f"{checkpoint}: {len(fitting)} tensors of an isotropic ConvNeXt loaded", "current")


def _spare(name: str, built: int) -> bool:
    block = re.match(r"blocks\.(\d+)\.", name)
    beside = re.match(r"(norm\d*|head)\.", name)
    return bool(beside or block and int(block[1]) >= built)
