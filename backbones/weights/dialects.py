"""Layouts of ConvNeXt weights: tables of name templates, read inwards and outwards.

A dialect has the official name of every part beside its own. Loading goes in, from any of them to
the official layout; converting goes out.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt

from torch import Tensor

from backbones.errors import InputError


@dataclass(frozen=True)
class Dialect:
    """One layout of ConvNeXt parameter names.

    Attributes:
        name: whose layout it is.
        names: (official, theirs) templates of a module or parameter; {i} is a stage, {j} a block,
            {k} a layer of a stem or downsampling, and {2i+1} is arithmetic on it. In the order
            they are tried; the first that matches wins.
        trunks: what precedes the backbone's names in the library's own classifier, V1 then V2.
        beside: official modules that stand outside that trunk.
        shapes: (end of the official name, shape) of tensors that are shaped otherwise there.
        wrapper: key under which the library's own files hold the weights.
        unlike: (pattern, what it is) of names that only another network than ours has.
    """

    name: str
    names: tuple[tuple[str, str], ...]
    trunks: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    wrapper: str | None = None
    unlike: tuple[tuple[str, str], ...] = ()

    @property
    def marker(self) -> str:
        """Its name, without prefix, of the first depthwise weight; no other dialect has it."""
        return self.outward("stages.0.0.dwconv.weight")

    def outward(self, name: str) -> str | None:
        """Its name of an official one; None where it has no place for it."""
        return _translate(name, self.names)

    def inward(self, name: str) -> str | None:
        """The official name of one of its own; None for what it does not know."""
        return _translate(name, tuple((theirs, ours) for ours, theirs in self.names))


_FLAT_GRN = (("grn.gamma", (-1,)), ("grn.beta", (-1,)))

OFFICIAL = Dialect(
    "official",
    (
        ("downsample_layers.{i}.{k}", "downsample_layers.{i}.{k}"),
        ("stages.{i}.{j}.dwconv", "stages.{i}.{j}.dwconv"),
        ("stages.{i}.{j}.norm", "stages.{i}.{j}.norm"),
        ("stages.{i}.{j}.pwconv{k}", "stages.{i}.{j}.pwconv{k}"),
        ("stages.{i}.{j}.gamma", "stages.{i}.{j}.gamma"),
        ("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma"),
        ("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta"),
        ("norm", "norm"),
        ("norm{i}", "norm{i}"),
        ("head", "head"),
    ),
    wrapper="model",
)
# V2's self-supervised encoder as MinkowskiEngine holds it (official repository, models/fcmae.py).
MINKOWSKI = Dialect(
    "official sparse FCMAE",
    (
        ("downsample_layers.0.{k}", "downsample_layers.0.{k}"),
        ("downsample_layers.{i}.0", "downsample_layers.{i}.0.ln"),
        ("downsample_layers.{i}.1.weight", "downsample_layers.{i}.1.kernel"),
        ("downsample_layers.{i}.1.bias", "downsample_layers.{i}.1.bias"),
        ("stages.{i}.{j}.dwconv.weight", "stages.{i}.{j}.dwconv.kernel"),
        ("stages.{i}.{j}.dwconv.bias", "stages.{i}.{j}.dwconv.bias"),
        ("stages.{i}.{j}.norm", "stages.{i}.{j}.norm.ln"),
        ("stages.{i}.{j}.pwconv{k}", "stages.{i}.{j}.pwconv{k}.linear"),
        ("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma"),
        ("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta"),
    ),
)
TIMM = Dialect(
    "timm",
    (
        ("downsample_layers.0.{k}", "stem.{k}"),
        ("downsample_layers.{i}.{k}", "stages.{i}.downsample.{k}"),
        ("stages.{i}.{j}.dwconv", "stages.{i}.blocks.{j}.conv_dw"),
        ("stages.{i}.{j}.norm", "stages.{i}.blocks.{j}.norm"),
        ("stages.{i}.{j}.pwconv{k}", "stages.{i}.blocks.{j}.mlp.fc{k}"),
        ("stages.{i}.{j}.gamma", "stages.{i}.blocks.{j}.gamma"),
        ("stages.{i}.{j}.grn.gamma", "stages.{i}.blocks.{j}.mlp.grn.weight"),
        ("stages.{i}.{j}.grn.beta", "stages.{i}.blocks.{j}.mlp.grn.bias"),
        ("norm", "head.norm"),
        # Its _hnf models normalise the last map before they pool it, as a dense backbone does.
        ("norm3", "norm_pre"),
        ("head", "head.fc"),
    ),
    shapes=_FLAT_GRN,
    unlike=((r"stem\.[23]\.", "an overlapping stem (timm's _ols)"),),
)
TORCHVISION = Dialect(
    "torchvision",
    (
        ("downsample_layers.{i}.{k}", "features.{2i}.{k}"),
        ("stages.{i}.{j}.dwconv", "features.{2i+1}.{j}.block.0"),
        ("stages.{i}.{j}.norm", "features.{2i+1}.{j}.block.2"),
        ("stages.{i}.{j}.pwconv1", "features.{2i+1}.{j}.block.3"),
        ("stages.{i}.{j}.pwconv2", "features.{2i+1}.{j}.block.5"),
        ("stages.{i}.{j}.gamma", "features.{2i+1}.{j}.layer_scale"),
        ("norm", "classifier.0"),
        ("head", "classifier.2"),
    ),
    shapes=((".gamma", (-1, 1, 1)),),
)
TRANSFORMERS = Dialect(
    "transformers",
    (
        ("downsample_layers.0.0", "embeddings.patch_embeddings"),
        ("downsample_layers.0.1", "embeddings.layernorm"),
        ("downsample_layers.{i}.{k}", "encoder.stages.{i}.downsampling_layer.{k}"),
        ("stages.{i}.{j}.dwconv", "encoder.stages.{i}.layers.{j}.dwconv"),
        ("stages.{i}.{j}.norm", "encoder.stages.{i}.layers.{j}.layernorm"),
        ("stages.{i}.{j}.pwconv{k}", "encoder.stages.{i}.layers.{j}.pwconv{k}"),
        ("stages.{i}.{j}.gamma", "encoder.stages.{i}.layers.{j}.layer_scale_parameter"),
        ("stages.{i}.{j}.grn.gamma", "encoder.stages.{i}.layers.{j}.grn.weight"),
        ("stages.{i}.{j}.grn.beta", "encoder.stages.{i}.layers.{j}.grn.bias"),
        ("norm", "layernorm"),
        ("norm{i}", "hidden_states_norms.stage{i+1}"),
        ("head", "classifier"),
    ),
    trunks=("convnext.", "convnextv2."),
    beside=("head",),
)
TRANSFORMERS_DINOV3 = Dialect(
    "transformers DINOv3",
    (
        ("downsample_layers.{i}.{k}", "stages.{i}.downsample_layers.{k}"),
        ("stages.{i}.{j}.dwconv", "stages.{i}.layers.{j}.depthwise_conv"),
        ("stages.{i}.{j}.norm", "stages.{i}.layers.{j}.layer_norm"),
        ("stages.{i}.{j}.pwconv{k}", "stages.{i}.layers.{j}.pointwise_conv{k}"),
        ("stages.{i}.{j}.gamma", "stages.{i}.layers.{j}.gamma"),
        ("norm", "layer_norm"),
    ),
    trunks=("model.",),
    beside=("norm",),
)
MMPRETRAIN = Dialect(
    "mmpretrain",
    (
        ("downsample_layers.{i}.{k}", "downsample_layers.{i}.{k}"),
        ("stages.{i}.{j}.dwconv", "stages.{i}.{j}.depthwise_conv"),
        ("stages.{i}.{j}.norm", "stages.{i}.{j}.norm"),
        ("stages.{i}.{j}.pwconv{k}", "stages.{i}.{j}.pointwise_conv{k}"),
        ("stages.{i}.{j}.gamma", "stages.{i}.{j}.gamma"),
        ("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma"),
        ("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta"),
        ("norm{i}", "norm{i}"),
        ("head", "head.fc"),
    ),
    trunks=("backbone.", "backbone."),
    beside=("head",),
    shapes=_FLAT_GRN,
    wrapper="state_dict",
)
DIALECTS = (
    *(OFFICIAL, MINKOWSKI, TIMM, TORCHVISION),
    *(TRANSFORMERS, TRANSFORMERS_DINOV3, MMPRETRAIN),
)
# What `convert` writes; the two left out are variants that their libraries only read.
TARGETS = {d.name: d for d in (OFFICIAL, TIMM, TORCHVISION, TRANSFORMERS, MMPRETRAIN)}

# timm builds these widths (atto to nano) with 1x1 convolutions where others have linears.
TIMM_CONV_MLP_WIDTHS = (40, 48, 64, 80)

# Tensors that belong to no backbone, by their name in the file, and whose they are.
SPARE = (
    (r"head\.pre_logits\.", "a classifier's"),
    (r"(projectors|norms)\.", "of distillation"),
    (r"(decoder|proj|pred)\.|mask_token", "of the FCMAE decoder"),
)


def to_official(
    tensors: Mapping[str, Tensor], dialect: Dialect, prefix: str, source: str | os.PathLike
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of the backbone and its classifier by official name and in the official shape.

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
                raise InputError(f"{source}: {key}: it has {what}, which this network has not")
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
            f"in the {dialect.name} layout"
        )
    if any("head.pre_logits." in key for key in rest):
        # Its head is a linear on a hidden layer; without that layer it means nothing.
        for name in [name for name in converted if name.startswith("head.")]:
            del converted[name]
            rest[prefix + dialect.outward(name)] = "a classifier's"
    return converted, rest


def from_official(tensors: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """The way out: official names and shapes to those of the library's own model.

    A classifier gets the names it has in the library's classifier, weights without a head those of
    its headless model.

    Raises:
        InputError: the library's ConvNeXt has no place for a tensor.
    """
    grn = any(".grn." in name for name in tensors)
    trunk = dialect.trunks[grn] if dialect.trunks else ""
    if dialect is TRANSFORMERS and "head.weight" not in tensors:
        trunk = ""
    last = len(architecture(tensors)[0]) - 1
    conv_mlp = dialect is TIMM and (
        tensors["stages.0.0.dwconv.weight"].shape[0] in TIMM_CONV_MLP_WIDTHS
        or "norm3.weight" in tensors  # timm's _hnf
    )
    converted = {}
    for name, tensor in tensors.items():
        if dialect is MMPRETRAIN:
            name = re.sub(r"^norm\.", f"norm{last}.", name)
        theirs = dialect.outward(name)
        if theirs is None:
            why = "it has no V2" if ".grn." in name else "its networks have no such part"
            raise InputError(f"the {dialect.name} layout cannot hold {name}: {why}")
        for end, shape in dialect.shapes:
            if name.endswith(end):
                tensor = tensor.reshape(shape)
        if conv_mlp and re.search(r"pwconv\d\.weight$", name):
            tensor = tensor[:, :, None, None]  # (out, in, 1, 1)
        inside = name.rsplit(".", 1)[0] not in dialect.beside
        converted[trunk * inside + theirs] = tensor
    return converted


def architecture(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and dims of the stages in a state dict with official names."""
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"stages\.(\d+)\.(\d+)\.dwconv\.weight", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            dims[stage] = tensor.shape[0]
    return tuple(depths[i] for i in sorted(depths)), tuple(dims[i] for i in sorted(dims))


def _official_shape(name: str, tensor: Tensor) -> Tensor:
    """A tensor of any dialect in the shape that the official layout gives it."""
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


def _translate(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """`name` by the first template on the left of `table` that matches, as the right one has it."""
    for template, other in table:
        pattern, numbers = _pattern(template)
        match = re.fullmatch(pattern, name)
        if not match:
            continue
        values = {}
        for text, (letter, factor, offset) in zip(match.groups(), numbers, strict=False):
            values[letter], remainder = divmod(int(text) - offset, factor)
            if remainder or values[letter] < 0:
                break
        else:
            return _fill(other, values) + match["parameter"]
    return None


@cache
def _pattern(template: str) -> tuple[re.Pattern, tuple[tuple[str, int, int], ...]]:
    """A regular expression for a template, and for each number in it (letter, factor, offset)."""
    numbers = tuple(
        (letter, int(factor or 1), int(offset or 0))
        for factor, letter, offset in _NUMBER.findall(template)
    )
    literal = _NUMBER.split(template)[:: _NUMBER.groups + 1]
    expression = r"(\d+)".join(map(re.escape, literal))
    return re.compile(expression + r"(?P<parameter>(?:\.(?:weight|bias))?)"), numbers


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _NUMBER.sub(lambda m: str(values[m[2]] * int(m[1] or 1) + int(m[3] or 0)), template)


_NUMBER = re.compile(r"\{(\d*)([a-z])(?:\+(\d+))?\}")
