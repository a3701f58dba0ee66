"""Recognise a checkpoint's content: the tensors in its wrappers, their layout and architecture."""

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from backbones.errors import InputError

from .dialects import DIALECTS, Dialect

# Where training scripts put the weights inside a checkpoint, the first one found wins.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "teacher", "model_ema", "module"),
    *("net", "network", "params", "params_ema"),
)
EMA = {"model_ema", "params_ema"}
# Modules that PyTorch puts around others: torch.compile, FSDP, activation checkpointing.
WRAPPING_MODULES = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
DEEPEST = 8  # wrappers in one another; a file may hold itself


def state_dict(
    checkpoint: object, source: str | os.PathLike, wrapper: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors by name in what a training script saved.

    Args:
        checkpoint: what `read_checkpoint` returned.
        source: its name in messages.
        wrapper: key of the weights; without it the first of `WRAPPERS` that holds tensors.
    """
    if wrapper is not None:
        if not (isinstance(checkpoint, Mapping) and _holds_tensors(checkpoint.get(wrapper))):
            raise InputError(
                f"{source}: holds no weights under {wrapper!r}", code="bad-value", where=source
            )
        checkpoint = checkpoint[wrapper]
    for _ in range(DEEPEST + 1):
        if not isinstance(checkpoint, Mapping) or not (keys := _wrappers(checkpoint)):
            break
        checkpoint = checkpoint[keys[0]]
    else:
        raise _unknown(source, "its wrappers are nested too deeply")
    if not isinstance(checkpoint, Mapping):
        raise _unknown(source, f"holds a {type(checkpoint).__name__}, not weights by name")
    found = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not found:
        keys = first_names(tuple(checkpoint), 5)
        raise _unknown(source, f"holds no tensors; its keys are {keys}")
    tensors = {}
    for key, tensor in found.items():
        name = WRAPPING_MODULES.sub("", key)
        if name in tensors:
            raise _unknown(source, f"holds {name} twice, once as {key}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise _unknown(source, f"{name} is sparse, quantised or without values; save plain")
        tensors[name] = tensor
    if all(key.startswith("module.") for key in tensors):  # saved from DistributedDataParallel
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors


def wrapper_of(checkpoint: object, wrapper: str | None = None) -> str:
    """Describe which of several sets of weights `state_dict` selects; empty if there is one."""
    keys = _wrappers(checkpoint)
    chosen = wrapper or (keys[0] if keys else "")
    others = ", ".join(key for key in keys if key != chosen)
    averaged = "EMA, " if chosen in EMA else "not EMA, " if EMA & {*keys} else ""
    if others:
        return f"{averaged}under {chosen!r} (also there: {others})"
    return averaged.removesuffix(", ")


def recognise(
    tensors: Mapping[str, Tensor], source: str | os.PathLike, prefix: str | None = None
) -> tuple[Dialect, str]:
    """Return the dialect of a state dict and the prefix before its names, from the keys alone."""
    found = [
        (dialect, key[: -len(dialect.marker)])
        for key in tensors
        for dialect in DIALECTS
        if key.endswith(dialect.marker)
    ]
    if prefix is not None:
        found = [(dialect, start) for dialect, start in found if start == prefix]
    if not found:
        under = f" under {prefix!r}" if prefix else ""
        names = first_names(tuple(tensors), 3)
        raise _unknown(source, f"no ConvNeXt weights{under}; its names: {names}")
    if len(found) > 1:
        prefixes = ", ".join(repr(start) for _, start in found)
        raise _unknown(source, f"holds several backbones; choose one by prefix=: {prefixes}")
    return found[0]


def architecture(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return depths and dims of the stages in a state dict with official names."""
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"stages\.(\d+)\.(\d+)\.dwconv\.weight", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            dims[stage] = tensor.shape[0]
    return tuple(depths[i] for i in sorted(depths)), tuple(dims[i] for i in sorted(dims))


def _wrappers(checkpoint: object, depth: int = DEEPEST) -> list[str]:
    if not isinstance(checkpoint, Mapping) or not depth:
        return []
    return [key for key in WRAPPERS if _holds_tensors(checkpoint.get(key), depth)]


def _holds_tensors(value: object, depth: int = DEEPEST) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values()) or bool(_wrappers(value, depth - 1))
    )


def first_names(names: tuple, count: int = 4) -> str:
    """Join the first few names, and append how many more there are."""
    shown = ", ".join(map(str, names[:count]))
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def _unknown(source: str | os.PathLike, problem: str) -> InputError:
    return InputError(f"{source}: {problem}", code="unknown-layout", where=source)
