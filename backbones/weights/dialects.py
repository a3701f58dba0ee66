"""Define layouts of ConvNeXt weights: tables of name templates, used in both directions.

A dialect has the official name of every part beside its own, and what else its library does in its
own way. Loading goes in, from any of them to the official layout; converting goes out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Dialect:
    """Define one layout of ConvNeXt parameter names.

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
        trunk_without_head: weights without a head have the trunk's prefix too.
        conv_mlp_widths: widths of the first stage at which the library builds 1x1 convolutions
            where others have linears.
        norm_before_pooling: its classifiers may normalise the last map before they pool it, as a
            dense backbone does; those have 1x1 convolutions at any width.
        names_norm_by_stage: its classifiers call the norm of the pooled features after the last
            stage, as dense backbones call their output norm.
        norm_of_maps: its networks have no head, and apply their one norm to maps.
    """

    name: str
    names: tuple[tuple[str, str], ...]
    trunks: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    wrapper: str | None = None
    unlike: tuple[tuple[str, str], ...] = ()
    trunk_without_head: bool = True
    conv_mlp_widths: tuple[int, ...] = ()
    norm_before_pooling: bool = False
    names_norm_by_stage: bool = False
    norm_of_maps: bool = False

    @property
    def marker(self) -> str:
        """Return its name, without prefix, of the first depthwise weight, unique to each layout."""
        marker = self.outward("stages.0.0.dwconv.weight")
        assert marker is not None, self.name
        return marker

    def outward(self, name: str) -> str | None:
        """Return its name for an official one; None if it has no counterpart."""
        return _translate(name, self.names)

    def inward(self, name: str) -> str | None:
        """Return the official name for one of its own; None if unknown."""
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
    conv_mlp_widths=(40, 48, 64, 80),  # atto to nano
    norm_before_pooling=True,  # _hnf
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
    trunk_without_head=False,
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
    norm_of_maps=True,
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
    names_norm_by_stage=True,
)
DIALECTS = (
    *(OFFICIAL, MINKOWSKI, TIMM, TORCHVISION),
    *(TRANSFORMERS, TRANSFORMERS_DINOV3, MMPRETRAIN),
)
# What `convert` writes; the two left out are variants that their libraries only read.
TARGETS = {d.name: d for d in (OFFICIAL, TIMM, TORCHVISION, TRANSFORMERS, MMPRETRAIN)}


def _translate(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """Translate a name by the first template on the left of `table` that matches; None if none."""
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
    """Return a template as a regular expression, and (letter, factor, offset) of its numbers."""
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
