"""Say which layers of an exported file can become INT8, and what a quantiser of a file does.

Depthwise convolutions, the stem and the downsampling layers, norms, GRN, layer scale, the residual
stream and the layers that return classes, boxes and masks stay float.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


class Quantizer(ABC):
    """Quantise an exported file, and measure what its layers lose by it.

    Attributes:
        path: the file, in float32.
        layers: the layers that can be quantised, in the order of the graph.
        narrow: whether weights have 7 bits.
    """

    path: Path
    layers: list[Layer]
    narrow: bool

    @abstractmethod
    def calibrate(self, inputs: Iterable[np.ndarray], folder: Path) -> None:
        """Measure the ranges of activations, or keep the images on which they are measured.

        Args:
            inputs: images (1, bands, H, W) as the file takes them.
            folder: folder for a temporary file.
        """

    @abstractmethod
    def write(self, layers: Sequence[Layer], path: Path, metadata: Mapping[str, object]) -> None:
        """Write a file with these layers in INT8.

        Args:
            layers: some of `layers`, at least one.
            path: the file.
            metadata: what is to change in the file's metadata.
        """

    @abstractmethod
    def sensitivities(self, inputs: Iterable[np.ndarray]) -> dict[Layer, float]:
        """Return how much of its output each layer loses in INT8 by itself.

        Beside every layer its INT8 twin takes the same float input, so that no layer's loss hides
        another's: the norm of the outputs' difference, relative to the float output's.

        Args:
            inputs: images (1, bands, H, W).
        """


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
