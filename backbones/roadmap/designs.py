"""List the roadmap's design choices, its 17 steps and their published numbers.

"A ConvNet for the 2020s" (arXiv:2201.03545), section 2, Figure 2, Tables 10 and 11.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from backbones.errors import InputError


@dataclass(frozen=True)
class Design:
    """Hold the paper's design choices; the defaults are a ResNet-50's.

    Attributes:
        depths: blocks of each stage.
        width: narrow channels of the first stage, doubled in each that follows. A bottleneck's
            stage has four times as many at its ends, an inverted one's in its middle.
        stem: `resnet`, a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2, or
            `patchify`, a 4x4 convolution of stride 4; each with a norm and an activation.
        depthwise: the spatial convolution has one filter for each channel.
        block: `bottleneck`, wide-narrow-wide, or `inverted`, narrow-wide-narrow.
        spatial_first: the spatial convolution comes before both 1x1 convolutions and sees the
            block's input channels ("moving up depthwise conv").
        kernel_size: size of the spatial convolution, odd.
        activation: `relu` or `gelu`.
        fewer_activations: one activation in a block, before its last convolution, and none after
            the addition or in the stem. Otherwise after each convolution's norm, the last one's
            after the addition.
        fewer_norms: one norm in a block, after the spatial convolution. A shortcut's 1x1
            convolution keeps its own: it is not one of the block's three.
        norm: `BN` or `LN`. A convolution has a bias unless a batch norm follows, which has one.
        separate_downsampling: a norm and a 2x2 convolution of stride 2 before each later stage.
            Otherwise the first block's spatial convolution has stride 2, and its shortcut a 1x1
            convolution of stride 2.
        final_norm: a norm of the pooled features before a classifier's head. The paper's text
            brings it with the separate downsampling ("one before each downsampling layer, one after
            the stem, and one after the final global average pooling").
        layer_scale_init_value: initial layer scale of each block; 0 for none.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    stem: str = "resnet"
    depthwise: bool = False
    block: str = "bottleneck"
    spatial_first: bool = False
    kernel_size: int = 3
    activation: str = "relu"
    fewer_activations: bool = False
    fewer_norms: bool = False
    norm: str = "BN"
    separate_downsampling: bool = False
    final_norm: bool = False
    layer_scale_init_value: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "depths", tuple(self.depths))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"ModernizedResNet: unknown {name} {getattr(self, name)!r}; "
                    f"known are {', '.join(known)}",
                    code="bad-value",
                    where=name,
                )
        if not self.depths or min(self.depths) < 1 or self.width < 1:
            raise _refusal("depths", f"{self.depths} and width {self.width} must be positive")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise _refusal("kernel_size", f"{self.kernel_size} must be odd and positive")
        if self.layer_scale_init_value < 0:
            raise _refusal("layer_scale_init_value", f"{self.layer_scale_init_value} is below 0")

    @property
    def dims(self) -> tuple[int, ...]:
        """Return the channels of each stage's map."""
        wide = 4 if self.block == "bottleneck" else 1
        return tuple(wide * self.width * 2**i for i in range(len(self.depths)))

    def hidden(self, stage: int) -> int:
        """Return the inner channels of each stage's blocks."""
        return self.width * 2**stage * (4 if self.block == "inverted" else 1)


CHOICES = {
    "stem": ("resnet", "patchify"),
    "block": ("bottleneck", "inverted"),
    "activation": ("relu", "gelu"),
    "norm": ("BN", "LN"),
}


class Published(NamedTuple):
    """Hold a row of Table 10 or 11: ImageNet-1k top-1 in %, GFLOPs, std over three seeds."""

    top1: float
    gflops: float
    std: float | None = None


class Step(NamedTuple):
    """Describe one row of the roadmap.

    Attributes:
        change: what is new, in words.
        choices: the design choices it sets.
        resnet50, resnet200: the published rows.
    """

    change: str
    choices: dict
    resnet50: Published
    resnet200: Published


# Where a regime's own numbers come in: they are not the same in both.
REGIMES = {
    "resnet50": {
        "resnet": dict(depths=(3, 4, 6, 3)),
        "stage_ratio": dict(depths=(3, 3, 9, 3)),
        "wider": dict(width=96),
    },
    "resnet200": {
        "resnet": dict(depths=(3, 24, 36, 3)),
        "stage_ratio": dict(depths=(3, 3, 27, 3), width=84),
        "wider": dict(width=128),
    },
}

# Tables 10 and 11, top to bottom. The gelu row stands on a kernel size of 7.
STEPS = {
    "resnet": Step(
        "ResNet, torchvision's recipe",
        {},
        Published(76.13, 4.09),
        Published(78.20, 15.01),
    ),
    "training_recipe": Step(
        "the same network, ConvNeXt's recipe",
        {},
        Published(78.82, 4.09, 0.07),
        Published(81.14, 15.01),
    ),
    "stage_ratio": Step(
        "blocks of the stages 1:1:3:1 or 1:1:9:1",
        {},
        Published(79.36, 4.53, 0.07),
        Published(81.33, 14.52),
    ),
    "patchify": Step(
        "stem of one 4x4 convolution, stride 4",
        dict(stem="patchify"),
        Published(79.51, 4.42, 0.18),
        Published(81.59, 14.38),
    ),
    "depthwise": Step(
        "depthwise 3x3 convolutions",
        dict(depthwise=True),
        Published(78.28, 2.35, 0.08),
        Published(80.54, 7.23),
    ),
    "wider": Step(
        "Swin's width",
        {},
        Published(80.50, 5.27, 0.02),
        Published(81.85, 16.76),
    ),
    "inverted_bottleneck": Step(
        "narrow-wide-narrow blocks",
        dict(block="inverted"),
        Published(80.64, 4.64, 0.03),
        Published(82.64, 15.68),
    ),
    "moved_up_depthwise": Step(
        "depthwise convolution first",
        dict(spatial_first=True),
        Published(79.92, 4.07, 0.08),
        Published(82.04, 14.63),
    ),
    "kernel_5": Step(
        "depthwise 5x5",
        dict(kernel_size=5),
        Published(80.35, 4.10, 0.08),
        Published(82.32, 14.70),
    ),
    "kernel_7": Step(
        "depthwise 7x7",
        dict(kernel_size=7),
        Published(80.57, 4.15, 0.14),
        Published(82.30, 14.81),
    ),
    "kernel_9": Step(
        "depthwise 9x9",
        dict(kernel_size=9),
        Published(80.57, 4.21, 0.06),
        Published(82.27, 14.95),
    ),
    "kernel_11": Step(
        "depthwise 11x11",
        dict(kernel_size=11),
        Published(80.47, 4.29, 0.11),
        Published(82.18, 15.13),
    ),
    "gelu": Step(
        "GELU for ReLU, from 7x7 on",
        dict(activation="gelu", kernel_size=7),
        Published(80.62, 4.15, 0.14),
        Published(82.19, 14.81),
    ),
    "fewer_activations": Step(
        "one activation in a block",
        dict(fewer_activations=True),
        Published(81.27, 4.15, 0.06),
        Published(82.71, 14.81),
    ),
    "fewer_norms": Step(
        "one norm in a block",
        dict(fewer_norms=True),
        Published(81.41, 4.15, 0.09),
        Published(83.17, 14.81),
    ),
    "layer_norm": Step(
        "layer norm for batch norm",
        dict(norm="LN"),
        Published(81.47, 4.46, 0.09),
        Published(83.35, 14.81),
    ),
    "separate_downsampling": Step(
        "2x2 convolutions between stages: ConvNeXt",
        dict(separate_downsampling=True, final_norm=True, layer_scale_init_value=1e-6),
        Published(81.97, 4.49, 0.06),
        Published(83.60, 15.35),
    ),
}

# The Transformers that the last rows of the tables compare with.
SWIN = {"resnet50": Published(81.30, 4.50), "resnet200": Published(83.50, 15.43)}


def design(step: str, regime: str = "resnet50", **choices: Any) -> Design:
    """Return the design of a row of the roadmap, with the given choices replaced.

    Args:
        step: a name in `STEPS`.
        regime: `resnet50` (Table 10, to ConvNeXt-T) or `resnet200` (Table 11, to ConvNeXt-B).
        choices: fields of `Design`; those that are None are the step's.

    Raises:
        InputError: an unknown step, regime, choice or value.
    """
    for name, value, known in (("step", step, STEPS), ("regime", regime, REGIMES)):
        if value not in known:
            raise InputError(
                f"ModernizedResNet: unknown {name} {value!r}; known are {', '.join(known)}",
                code="unknown-name",
                where=name,
            )
    fields = [field.name for field in dataclasses.fields(Design)]
    if unknown := [name for name in choices if name not in fields]:
        raise InputError(
            f"ModernizedResNet: unknown choice design.{unknown[0]}; known are {', '.join(fields)}",
            code="unknown-key",
            where=f"design.{unknown[0]}",
        )
    settled: dict[str, Any] = {}
    for name, row in STEPS.items():
        settled |= row.choices | REGIMES[regime].get(name, {})
        if name == step:
            break
    return Design(**settled | {k: v for k, v in choices.items() if v is not None})


def _refusal(name: str, problem: str) -> InputError:
    return InputError(f"ModernizedResNet: {name} {problem}", code="bad-value", where=name)
