"""Convert tensors between layouts: into the official layout, and out of it."""

import os
import re
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

from backbones.errors import InputError

from .description import describe, modules
from .dialects import TARGETS, Dialect
from .reading import read_checkpoint
from .recognition import architecture, recognise, state_dict, wrapper_of

# Tensors that belong to no backbone, by their name in the file, and whose they are.
SPARE = (
    (r"head\.pre_logits\.", "a classifier's"),
    (r"(projectors|norms)\.", "of distillation"),
    (r"(decoder|proj|pred)\.|mask_token", "of the FCMAE decoder"),
)


def convert(
    source: str | os.PathLike,
    target: str,
    *,
    prefix: str | None = None,
    wrapper: str | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Convert a checkpoint's backbone and classifier to another library's layout.

    Args:
        source: anything `read_checkpoint` reads.
        target: a name in `TARGETS`.
        prefix, wrapper: as for `load_pretrained`.

    Returns:
        Tensors by the library's names, each with memory of its own, and one line on what was done.

    Raises:
        InputError: as `load_pretrained`; the library has no place for a tensor; the file's tensors
            are not those of a whole ConvNeXt.
    """
    content = read_checkpoint(source)
    tensors = state_dict(content, source, wrapper)
    dialect, prefix = recognise(tensors, source, prefix)
    official, rest = to_official(tensors, dialect, prefix, source)
    depths, dims = architecture(official)
    last = f"norm{len(depths) - 1}."
    norms = {name[: len(last)] for name in official if re.match(r"norm\d\.", name)}
    if dialect.names_norm_by_stage and "head.weight" in official and norms == {last}:
        official = {re.sub(rf"^{last}", "norm.", k): v for k, v in official.items()}
        norms = set()
    if "head.weight" in official and norms and not TARGETS[target].norm_before_pooling:
        raise InputError(
            f"{source}: its classifier normalises before pooling ({last}weight), which only timm's "
            "layout supports",
            code="unsupported",
            where=source,
        )
    try:
        converted = from_official(official, TARGETS[target])
    except InputError as error:
        raise InputError(f"{source}: {error}", code=error.code, where=source) from None
    line = f"{source}: {len(converted)} tensors, {dialect.name} to {target}"
    line += f"; {describe(official, source, wrapper_of(content, wrapper))}"
    if "head.weight" not in official:
        line += "; no classifier in it"
    if rest:
        line += f"; left out: {modules(rest)}"
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in converted.items()}, line


def to_official(
    tensors: Mapping[str, Tensor], dialect: Dialect, prefix: str, source: str | os.PathLike
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and reshape the tensors of a backbone and its classifier to the official layout.

    Returns:
        The tensors, and the names of the file's other tensors with the reason for leaving them.

    Raises:
        InputError: a name of the backbone that the dialect does not have.
    """
    trunk = next((t for t in dialect.trunks if prefix.endswith(t)), "")
    base = prefix.removesuffix(trunk)
    converted, rest, unknown = {}, {}, []
    for key, tensor in tensors.items():
        if not key.startswith(prefix):
            name = dialect.inward(key.removeprefix(base)) if key.startswith(base) else None
            if name and name.rsplit(".", 1)[0] in dialect.beside:
                converted[name] = tensor
            else:
                rest[key] = "outside the backbone"
            continue
        local = key.removeprefix(prefix)
        name = dialect.inward(local)
        for pattern, what in dialect.unlike:
            if re.match(pattern, local):
                raise InputError(
                    f"{source}: {key}: it has {what}, which this network lacks",
                    code="checkpoint-mismatch",
                    where=source,
                )
        if name:
            converted[name] = _official_shape(name, tensor)
        elif reason := next((why for pattern, why in SPARE if re.match(pattern, local)), None):
            rest[key] = reason
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise InputError(
            f"{source}: does not fit the model: {', '.join(unknown[:4])}{more} is unknown "
            f"in the {dialect.name} layout",
            code="checkpoint-mismatch",
            where=source,
        )
    if any("head.pre_logits." in key for key in rest):
        # Its head is a linear on a hidden layer; without that layer it means nothing.
        for name in [name for name in converted if name.startswith("head.")]:
            del converted[name]
            rest[f"{prefix}{dialect.outward(name)}"] = "a classifier's"
    return converted, rest


def from_official(tensors: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Rename and reshape official tensors to those of the library's own model.

    A classifier gets the names it has in the library's classifier, weights without a head those of
    its headless model.

    Raises:
        InputError: the library's ConvNeXt has no place for a tensor.
    """
    grn = any(".grn." in name for name in tensors)
    trunk = dialect.trunks[grn] if dialect.trunks else ""
    if not dialect.trunk_without_head and "head.weight" not in tensors:
        trunk = ""
    last = len(architecture(tensors)[0]) - 1
    conv_mlp = tensors["stages.0.0.dwconv.weight"].shape[0] in dialect.conv_mlp_widths
    conv_mlp |= dialect.norm_before_pooling and f"norm{last}.weight" in tensors
    converted = {}
    for name, tensor in tensors.items():
        if dialect.names_norm_by_stage:
            name = re.sub(r"^norm\.", f"norm{last}.", name)
        theirs = dialect.outward(name)
        if theirs is None:
            why = "it has no V2" if ".grn." in name else "its networks have no such part"
            raise InputError(
                f"the {dialect.name} layout cannot hold {name}: {why}",
                code="unsupported",
                where=name,
            )
        for end, shape in dialect.shapes:
            if name.endswith(end):
                tensor = tensor.reshape(shape)
        if conv_mlp and re.search(r"pwconv\d\.weight$", name):
            tensor = tensor[:, :, None, None]  # (out, in, 1, 1)
        inside = name.rsplit(".", 1)[0] not in dialect.beside
        converted[trunk * inside + theirs] = tensor
    return converted


def _official_shape(name: str, tensor: Tensor) -> Tensor:
    """Reshape a tensor of any dialect to its official shape."""
    if ".grn." in name:
        return tensor.reshape(1, 1, 1, -1)  # (1, 1, 1, 4C)
    if name.endswith((".gamma", ".bias")):
        return tensor.reshape(-1)  # (C,) of torchvision's (C, 1, 1), MinkowskiEngine's (1, C)
    if name.endswith(".weight") and ".pwconv" in name and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)  # (out, in) of timm's 1x1 convolutions
    # MinkowskiEngine flattens a kernel with x running slowest.
    if name.endswith(".dwconv.weight") and tensor.ndim == 2:
        side = isqrt(tensor.shape[0])
        return tensor.T.reshape(-1, 1, side, side).transpose(2, 3)  # (C, 1, 7, 7)
    if name.startswith("downsample_layers.") and tensor.ndim == 3:
        side, (_, inputs, outputs) = isqrt(tensor.shape[0]), tensor.shape
        return tensor.permute(2, 1, 0).reshape(outputs, inputs, side, side).transpose(2, 3)
    return tensor
