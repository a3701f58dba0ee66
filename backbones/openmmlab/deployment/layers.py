"""Say which layers of an exported file can become INT8.

Depthwise convolutions, the stem and the downsampling layers, norms, GRN, layer scale, the residual
stream and the layers that return classes, boxes and masks stay float.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from backbones.openmmlab.processor import processor_flags

# 8-bit products of other x86 processors are added in 16 bits, which saturate.
EXACT = ("avx512_vnni", "avx_vnni", "asimd")


@dataclass(frozen=True)
class Layer:
    """Name a layer that can be quantised.

    Attributes:
        node: the name of its node in the graph.
        name: the path of its module in the model.
        kind: "linear" or "convolution".
    """

    node: str
    name: str
    kind: str


def quantisable(layers: Iterable[Layer], kept: re.Pattern[str], backbone: str) -> list[Layer]:
    """Return those of a graph's linears and dense convolutions that may become INT8.

    Args:
        layers: in the order of the graph.
        kept: pattern of the names of layers that stay float in any case: those of the classes.
        backbone: the attribute of the model that holds the backbone, whose convolutions stay float.
    """
    return [
        layer
        for layer in layers
        if not kept.search(layer.name)
        and (layer.kind == "linear" or not f".{layer.name}".startswith(f".{backbone}."))
    ]


def has_narrow_weights() -> bool:
    """Return whether weights need 7 bits on this processor."""
    return not processor_flags(EXACT)
