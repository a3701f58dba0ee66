"""Count the parameters and multiply-adds of a config's model, as the papers do.

Multiply-adds are those of convolutions and matrix products (linears, attention), what papers call
FLOPs. A detector sees one 1280x800 image, each of its box heads 1000 regions and each of its mask
and grid heads 100; CondInst and YOLACT find 100 instances. A segmentor sees one image of its test
scale and is counted without its auxiliary head, which only training uses, and with its head's
convolutions as they are defined, not factorised; a classifier sees one image of its test size. This
gives the figures of ConvNeXt and Swin
(arXiv:2201.03545, Tables 1, 3 and 4) and of ConvNeXt V2 (arXiv:2301.00808, section 4) within
0.15 %.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from backbones.errors import InputError
from backbones.openmmlab.tasks import ValuesNeeded, module_at, task_of

# What parts that were never written to run on tensors without values raise.
UNCOUNTABLE = (TypeError, ValueError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Complexity:
    """Hold parameters and multiply-adds of a model by part, with the sum under `total`.

    Attributes:
        size: (width, height) of the image counted for.
        params: parameters of the parts that the model has, by the names of `Task.parts`; those of
            a cascade's stages together; the rest under `other`.
        macs: multiply-adds for one image, without the auxiliary head.
        executed: the same as far as they are really executed, less where a head is factorised.
    """

    size: tuple[int, int]
    params: dict[str, int]
    macs: dict[str, int]
    executed: dict[str, int]


class PartCounter:
    """Run parts of a model (`tasks.PartRunner`) and add up their multiply-adds by name."""

    def __init__(self):
        self.macs: dict[str, int] = {}
        self.executed: dict[str, int] = {}

    def __call__(
        self,
        part: str,
        function: Callable[..., Any],
        *inputs: Any,
        published: bool = True,
        executed: bool = True,
        **named_inputs: Any,
    ) -> Any:
        output, macs = multiply_adds(function, *inputs, **named_inputs)
        for counts, counted in ((self.macs, published), (self.executed, executed)):
            if counted:
                counts[part] = counts.get(part, 0) + macs
        return output


def count(config: Config, size: tuple[int, int] | None = None) -> Complexity:
    """Count the multiply-adds of a config's model; no weights are read or downloaded.

    Most models are counted on the meta device, since sizes alone decide what they compute. A model
    whose attention reads the sizes of its maps from tensors runs on the CPU with zero weights.

    Args:
        config: a detector's, a segmentor's or an image classifier's config.
        size: (width, height) of the image; None for the papers' choice.

    Raises:
        InputError: what the model computes depends on what is in the image, or it does not take an
            image of this size.
    """
    size = size or task_of(config).default_size(config)
    try:
        return _count_on("meta", config, size)
    except ValuesNeeded:
        return _count_on("cpu", config, size)


def image_channels(config: Config) -> int:
    """Return the number of channels of a config's images."""
    given = (config.model.get(task_of(config).backbone) or {}).get("in_channels", 3)
    return given if isinstance(given, int) else 3


def _count_on(device: str, config: Config, size: tuple[int, int]) -> Complexity:
    task = task_of(config)
    model = _built(config).requires_grad_(False)
    if device != "meta":
        model = model.to_empty(device=device)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
    counter = PartCounter()
    try:
        with torch.device(device), DefaultScope.overwrite_default_scope(task.scope):
            task.run_parts(model, torch.zeros(1, image_channels(config), *reversed(size)), counter)
    except InputError:
        raise
    except NotImplementedError as error:
        raise _uncountable(model, error, ValuesNeeded) from error
    except UNCOUNTABLE as error:
        raise _uncountable(model, error) from error
    except RuntimeError as error:
        shape = f"{size[0]}x{size[1]}"
        if "meta" in str(error):  # something asked for values
            raise _uncountable(model, error, ValuesNeeded) from error
        if "is not available" in str(error):  # an operator that only compiled mmcv has
            raise InputError(_reason(error), code="missing-package", where="mmcv") from error
        raise InputError(
            f"a {shape} image does not fit this model: {_reason(error)}",
            code="bad-argument",
            where=shape,
        ) from error

    modules = {
        name: [module for path in paths if (module := module_at(model, path)) is not None]
        for name, paths in task.parts.items()
    }
    params = {name: sum(map(_parameters, parts)) for name, parts in modules.items() if parts}
    if other := _parameters(model) - sum(params.values()):
        params["other"] = other
    return Complexity(
        size,
        {"total": sum(params.values()), **params},
        {"total": sum(counter.macs.values()), **counter.macs},
        {"total": sum(counter.executed.values()), **counter.executed},
    )


def _uncountable(
    model: nn.Module, error: Exception, kind: type[InputError] = InputError
) -> InputError:
    name = type(model).__name__
    return kind(
        f"{name}: its multiply-adds cannot be counted without an image ({_reason(error)})",
        code="unsupported",
        where=name,
    )


def build_on_meta(config: Config) -> Any:
    """Build a config's model in evaluation mode, with shapes but without values."""
    scope = config.get("default_scope") or "mmengine"
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"), _SchedulesOnCPU():
        return MODELS.build(deepcopy(config.model)).eval()


class _SchedulesOnCPU(TorchFunctionMode):
    """Keep `torch.linspace` on the CPU: Swin and others read their drop path rates from it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _built(config: Config) -> Any:
    try:
        return build_on_meta(config)
    except InputError:
        raise
    except (ImportError, RuntimeError, *UNCOUNTABLE) as error:
        raise InputError(
            f"{config.filename}: model {config.model.type} cannot be built ({_reason(error)})",
            code="bad-config",
            where=config.filename,
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def multiply_adds(
    function: Callable[..., Any], *inputs: Any, **named_inputs: Any
) -> tuple[Any, int]:
    """Run a module; return its output and its multiply-adds, on any device."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        output = function(*inputs, **named_inputs)
    return output, counter.get_total_flops() // 2  # torch counts a multiply-add as two
