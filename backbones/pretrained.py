"""Create a ConvNeXt by the name of its published weights, for users of plain PyTorch."""

import os
from collections.abc import Sequence

from .architectures import ARCHITECTURES
from .convnext import ConvNeXt
from .weights import find, load_pretrained


def create_backbone(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike | None = None,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    frozen_stages: int = 0,
    with_cp: bool = False,
    pad_input: bool = False,
) -> ConvNeXt:
    """Build a ConvNeXt in evaluation mode: images (N, in_channels, H, W) to a tuple of maps.

    Args:
        name: weights of the zoo by file name or timm tag (`tools/zoo.py` lists them), such as
            `convnext_tiny.fb_in1k`; or an arch, such as `tiny`, which has no weights of its own.
        pretrained: load the weights; without it only their architecture is taken.
        checkpoint: load these instead: a file, URL, `hf-hub:owner/name` or `timm:tag`, in any
            layout that `load_pretrained` knows.
        in_channels, drop_path_rate, out_indices, frozen_stages, with_cp, pad_input: as in
            `ConvNeXt`.

    Raises:
        InputError: there are no such weights, they cannot be had, or they are of another network.
    """
    if name in ARCHITECTURES:
        arch, use_grn, source = name, False, checkpoint
    else:
        weights = find(name)
        arch, use_grn, source = weights.arch, weights.use_grn, checkpoint or weights.source
    backbone = ConvNeXt(
        arch,
        in_channels=in_channels,
        use_grn=use_grn,
        drop_path_rate=drop_path_rate,
        out_indices=out_indices,
        frozen_stages=frozen_stages,
        with_cp=with_cp,
        pad_input=pad_input,
    )
    if source and (pretrained or checkpoint):
        load_pretrained(backbone, source)
    return backbone.eval()
