"""Parameters and multiply-adds of a detector, segmentor or classifier, as the papers count them.

Multiply-adds are those of convolutions and matrix products (linears, attention), what papers call
FLOPs. A detector sees one 1280x800 image, each of its box heads 1000 regions and each of its mask
heads 100; a segmentor sees one image of its test scale and is counted without its auxiliary head,
which only training uses, and with its head's convolutions as they are defined, not factorised; a
classifier sees one image of its test size. This gives the figures of ConvNeXt and Swin
(arXiv:2201.03545, Tables 1, 3 and 4) and of ConvNeXt V2 (arXiv:2301.00808, section 4) within
0.15 %.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from backbones.errors import InputError

DETECTION_SIZE = (1280, 800)
BOX_REGIONS = 1000
MASK_REGIONS = 100


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a model by part, with the sum under `total`.

    Attributes:
        size: (width, height) of the image counted at.
        params: parameters of `backbone`, `neck`, `rpn_head`, `bbox_head` and `mask_head` (all
            stages together), `decode_head`, `auxiliary_head`, as far as the model has them, and of
            `other` where there is more; of a classifier, of its `network`.
        macs: multiply-adds for one image, without the auxiliary head.
        executed: the same as far as they are really executed, less where a head is factorised.
    """

    size: tuple[int, int]
    params: dict[str, int]
    macs: dict[str, int]
    executed: dict[str, int]


def count(config: Config, size: tuple[int, int] | None = None) -> Complexity:
    """Count a config's model on the meta device: no weights are read, drawn or downloaded.

    Args:
        config: of a two-stage detector, an encoder-decoder segmentor or an image classifier.
        size: (width, height) of the image; None for the papers' choice.

    Raises:
        InputError: the model is of another kind, or does not take an image of this size.
    """
    model = build_on_meta(config)
    detector = hasattr(model, "roi_head")
    if detector:
        default_size, count_macs = DETECTION_SIZE, _detector_macs
    elif hasattr(model, "decode_head"):
        default_size, count_macs = None if size else base_scale(config), _segmentor_macs
    elif hasattr(model, "network"):
        default_size, count_macs = None if size else input_size(config), _classifier_macs
    else:
        raise InputError(
            f"{config.model.type}: only two-stage detectors (with a roi_head), segmentors (with a "
            "decode_head) and classifiers (with a network) are counted"
        )
    size = size or default_size
    image = torch.empty(1, 3, *reversed(size), device="meta")
    try:
        macs, executed = count_macs(model, image)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"a {size[0]}x{size[1]} image does not fit this model: {reason}"
        ) from error

    parts = ("backbone", "neck", "rpn_head", "decode_head", "auxiliary_head", "network")
    modules = {name: getattr(model, name, None) for name in parts}
    if detector:
        modules |= {
            name: getattr(model.roi_head, name, None) for name in ("bbox_head", "mask_head")
        }
    params = {name: _parameters(module) for name, module in modules.items() if module is not None}
    if other := _parameters(model) - sum(params.values()):
        params["other"] = other
    return Complexity(
        size,
        {"total": sum(params.values()), **params},
        {"total": sum(macs.values()), **macs},
        {"total": sum(executed.values()), **executed},
    )


def build_on_meta(config: Config) -> BaseModel:
    """The config's model in evaluation mode, with shapes but no values."""
    scope = config.get("default_scope", "mmengine")
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"), _SchedulesOnCPU():
        return MODELS.build(deepcopy(config.model)).eval()


def base_scale(config: Config) -> tuple[int, int]:
    """(width, height) that a segmentation config resizes images to for testing.

    Raises:
        InputError: its test pipeline has no Resize with a scale.
    """
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == "Resize" and "scale" in step:
            return tuple(step.scale)
    raise InputError(
        f"{config.filename}: test_dataloader.dataset.pipeline has no Resize with a scale; "
        "give the size to count at"
    )


def input_size(config: Config) -> tuple[int, int]:
    """(width, height) of the images that a classification config evaluates or else trains on.

    Raises:
        InputError: no transform of its pipeline has an input_size.
    """
    loader = config.get("test_dataloader") or config.train_dataloader
    for step in loader.dataset.pipeline:
        if "input_size" in step:
            return step.input_size, step.input_size
    raise InputError(
        f"{config.filename}: no transform of dataset.pipeline has an input_size; "
        "give the size to count at"
    )


class _SchedulesOnCPU(TorchFunctionMode):
    """Swin and others take their drop path rates out of a `torch.linspace`: that needs values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(function: Callable, *inputs: Any) -> tuple[Any, int]:
    """A module's output and the multiply-adds that it took, on whatever device the inputs are."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        output = function(*inputs)
    return output, counter.get_total_flops() // 2  # torch counts a multiply-add as two


def _features(model: BaseModel, image: Tensor) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    maps, backbone = multiply_adds(model.backbone, image)
    if not model.with_neck:
        return maps, {"backbone": backbone}
    maps, neck = multiply_adds(model.neck, maps)
    return maps, {"backbone": backbone, "neck": neck}


def _detector_macs(model: BaseModel, image: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    maps, macs = _features(model, image)
    if model.with_rpn:
        macs["rpn_head"] = multiply_adds(model.rpn_head, maps)[1]
    for name, regions in (("bbox", BOX_REGIONS), ("mask", MASK_REGIONS)):
        heads = getattr(model.roi_head, f"{name}_head", None)
        if heads is None:
            continue
        extractors = getattr(model.roi_head, f"{name}_roi_extractor")
        macs[f"{name}_head"] = sum(
            multiply_adds(head, _regions(extractor, regions))[1]
            for head, extractor in zip(_stages(heads), _stages(extractors), strict=True)
        )
    return macs, macs


def _stages(modules: nn.Module) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def _regions(extractor: nn.Module, number: int) -> Tensor:
    height, width = extractor.roi_layers[0].output_size
    return torch.empty(number, extractor.out_channels, height, width, device="meta")


def _segmentor_macs(model: BaseModel, image: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """As published and as executed."""
    maps, macs = _features(model, image)
    head = model.decode_head
    executed = published = multiply_adds(head, maps)[1]
    if getattr(head, "factorize", False):
        head.factorize = False
        published = multiply_adds(head, maps)[1]
    return macs | {"decode_head": published}, macs | {"decode_head": executed}


def _classifier_macs(model: BaseModel, image: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    macs = {"network": multiply_adds(model.network, image)[1]}
    return macs, macs
