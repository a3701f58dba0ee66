"""Adapt the widths of necks and heads to a backbone that is changed on the command line."""

from collections.abc import Iterable, Iterator

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from backbones.errors import InputError

PARTS = ("neck", "decode_head", "auxiliary_head")  # what reads the backbone's maps


def may_change_widths(key: str) -> bool:
    """Return whether a dotted key may change the width of the maps that a neck or head reads."""
    return key.startswith("model.backbone") and not key.endswith("init_cfg") or "in_index" in key


def follow_backbone(config: Config, before: Config, changed: Iterable[str]) -> None:
    """Give necks and heads the widths of the changed backbone where they had those of the original.

    So one `--cfg-options model.backbone.arch=small` is enough. A part whose `in_channels` is
    changed itself keeps that.

    Args:
        config: after the change; changed in place.
        before: the same config before it.
        changed: the dotted keys that were changed.

    Raises:
        InputError: the backbone cannot be built, or a head reads a map that it does not have.
    """
    changed = set(changed)
    if not any(True for _ in _parts(before)):
        return
    widths = _widths(config)
    try:
        former = _widths(before)
    except InputError:  # no widths to have followed
        return
    if widths is None or former is None:
        return
    for (name, part), (_, old) in zip(_parts(config), _parts(before), strict=False):
        given = old["in_channels"]
        given = list(given) if isinstance(given, tuple) else given
        if f"{name}.in_channels" not in changed and given == _read(name, old, former):
            part["in_channels"] = _read(name, part, widths)


def _parts(config: Config) -> Iterator[tuple[str, dict]]:
    model = config.get("model") or {}
    for name in PARTS:
        parts = model.get(name)
        for i, part in enumerate(parts if isinstance(parts, list | tuple) else [parts]):
            if isinstance(part, dict) and "in_channels" in part:
                yield f"model.{name}" + (f".{i}" if isinstance(parts, list | tuple) else ""), part


def _widths(config: Config) -> list[int] | None:
    """Return the widths of the maps that the backbone returns; None if it does not tell."""
    scope = config.get("default_scope") or "mmengine"
    try:
        with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
            backbone = MODELS.build(dict(config.model.backbone))
    except InputError:
        raise
    except Exception as error:  # its arguments may be anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"config key model.backbone: {reason}", code="bad-value", where="model.backbone"
        ) from error
    dims, indices = getattr(backbone, "dims", None), getattr(backbone, "out_indices", None)
    return None if dims is None or indices is None else [dims[i] for i in indices]


def _read(name: str, part: dict, widths: list[int]) -> int | list[int]:
    """Return the widths of the maps that a part reads, selected by its `in_index`."""
    index = part.get("in_index", range(len(widths)))
    try:
        return widths[index] if isinstance(index, int) else [widths[i] for i in index]
    except (LookupError, TypeError):
        raise InputError(
            f"config key {name}.in_index: {index!r:.40}, but the backbone has {len(widths)} maps",
            code="bad-value",
            where=f"{name}.in_index",
        ) from None
