"""Check every key of a config against what reads it.

mmengine merges a misspelled key silently and most classes of the stack read untyped dicts with
`.get`, so a typo trains another model. A dict is one of three kinds:

- It has a `type`: its keys are the arguments of that class, and any other key is an error.
- It has none, but its readers are known (`known_keys`): a key close to a known one is an error,
  any other unknown key is noted.
- Nobody has described it, or it is a helper variable at the top of a config: it is accepted,
  unless its name is close to a known one.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from backbones.errors import InputError
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.walk import nodes

from .known_keys import (
    BUILDER_KEYS,
    CONSTRUCTOR_KEYS,
    DEFAULT_TYPES,
    DELEGATES,
    FOREIGN,
    FOREIGN_KEYS,
    FREE_KEYS,
    LAX_CONSTRUCTORS,
    NAMED,
    NOT_TYPE,
    POPPED_KEYS,
    TOP_DICTS,
    TOP_KEYS,
    UNTYPED_KEYS,
)
from .signatures import signature_of


@dataclass(frozen=True)
class Reader:
    """Describe what reads a dict of a config.

    Attributes:
        keys: the keys that it takes.
        owner: the class whose arguments they are; None for an untyped dict.
        is_closed: whether any other key is an error.
        is_complete: whether another key is worth a note.
    """

    keys: Collection[str]
    owner: str | None = None
    is_closed: bool = False
    is_complete: bool = True


TOP = Reader(TOP_KEYS, is_complete=False)
UNDESCRIBED = Reader((), is_complete=False)
TYPE = Reader({"type"})


def validate(config: Config) -> None:
    """Reject a config with a key that nothing reads or a class that nothing registers.

    Raises:
        InputError: names the first such key by its full path and the nearest known one; its code
            is `unknown-key`, `unknown-name` or `bad-value`.
    """
    for where, key, reader in _unread(config):
        near = near_miss(key, reader.keys)
        if not reader.is_closed and near is None:
            continue
        reason = f"{reader.owner} has no such argument" if reader.owner else "unknown"
        hint = suggest(key, reader.keys) if near is None else f"; did you mean {near}?"
        raise InputError(f"config key {where}: {reason}{hint}", code="unknown-key", where=where)


def notes(config: Config) -> list[Issue]:
    """Return a note for each key that nothing known reads, of a config that `validate` accepts."""
    return [
        Issue("note", where, f"not a key that is known to be read here{suggest(key, reader.keys)}")
        for where, key, reader in _unread(config)
        if reader.is_complete
    ]


def near_miss(key: object, known: Collection[str]) -> str | None:
    """Return the known key that this one probably misspells, or None.

    One slip of the keyboard is: a letter too many or too few, another one, or two exchanged; in a
    key of eight letters or more, two of them. difflib's ratio would take `norm_cfg` for `env_cfg`
    and `val_evaluator_full` for `val_evaluator`, which configs have as variables of their own.
    """
    key = str(key)
    slips = {each: _slips(key, each) for each in known if abs(len(key) - len(each)) <= 2}
    near = [each for each, count in slips.items() if count <= (2 if len(each) >= 8 else 1)]
    return min(near, key=slips.__getitem__, default=None)


def _slips(one: str, other: str) -> int:
    """Return the optimal string alignment distance of two words."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one):
        previous, before, row = before, row, [i + 1]
        for j, target in enumerate(other):
            count = min(before[j] + (letter != target), before[j + 1] + 1, row[j] + 1)
            if i and j and letter == other[j - 1] and one[i - 1] == target:
                count = min(count, previous[j - 1] + 1)
            row.append(count)
    return row[-1]


def suggest(name: object, known: Collection[object]) -> str:
    """Return `; did you mean ...?` with the most similar known name, or an empty string."""
    close = get_close_matches(str(name), [str(each) for each in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def known_keys(config: Config, path: str, node: dict) -> Collection[str]:
    """Return the keys that the reader of a config's dict is known to take.

    Args:
        config: where the dict is, for its scope and its optimizer's constructor.
        path: the dict's dotted path in it.
        node: the dict.
    """
    reader = _reader(config, path, node, scope_of(config))
    return reader.keys if reader else ()


def _unread(config: Config) -> Iterator[tuple[str, str, Reader]]:
    """Yield path, key and reader of each key that is not known."""
    if not isinstance(config.get("model", {}), dict):
        raise InputError(
            f"config key model: {config.model!r:.40} is not a dict", code="bad-value", where="model"
        )
    scopes = {"": scope_of(config)}
    foreign: list[str] = []
    for path, node in nodes(config._cfg_dict):
        if not _is_read(path) or f"{path}.".startswith(tuple(foreign)):
            continue
        scope = scopes[path] = node.get("_scope_") or _scope_above(path, scopes)
        if isinstance(kind := node.get("type"), str) and kind in FOREIGN:
            foreign += [f"{path}.{key}." for key in FOREIGN[kind]]
        reader = _reader(config, path, node, scope)
        if reader is None:
            continue
        unknown = [k for k in node if k not in reader.keys and not str(k).startswith("_")]
        if path and kind is None:  # whatever else is in it, it may have been meant to have a type
            for key in unknown:
                if key not in NOT_TYPE and near_miss(key, TYPE.keys):
                    yield f"{path}.{key}", key, TYPE
        for key in unknown:
            yield (f"{path}.{key}" if path else str(key)), key, reader


def _is_read(path: str) -> bool:
    """Return whether a dict is read by the runner, and not part of a helper variable."""
    return not path or path.partition(".")[0] in TOP_KEYS


def scope_of(config: Config) -> str:
    scope = config.get("default_scope") or "mmengine"
    if not isinstance(scope, str):
        raise InputError(
            f"config key default_scope: {scope!r:.40} is not the name of a library",
            code="bad-value",
            where="default_scope",
        )
    return scope


def _scope_above(path: str, scopes: dict[str, str]) -> str:
    while path not in scopes:
        path = path.rpartition(".")[0]
    return scopes[path]


def _reader(config: Config, path: str, node: dict, scope: str) -> Reader | None:
    """Return what reads a dict; None if it may hold any key."""
    if path == "optim_wrapper.paramwise_cfg":
        return _constructor_reader(config.optim_wrapper, scope)
    if path.endswith(FOREIGN_KEYS):
        return None
    if "type" in node or path in DEFAULT_TYPES:
        return _class_reader(path, node, scope)
    if not path:
        return TOP
    if path in TOP_DICTS:
        return Reader(TOP_DICTS[path])
    generic = _with_list_marks(path)
    if generic in NAMED:
        return None
    for name, inside in FREE_KEYS.items():
        if _is_named(path, {name}):
            return None
        if f".{name}." in f".{generic}":
            return Reader(inside)
    ends = [end for end in UNTYPED_KEYS if generic == end or generic.endswith(f".{end}")]
    return Reader(UNTYPED_KEYS[max(ends, key=len)]) if ends else UNDESCRIBED


def _is_named(path: str, names: Collection[str]) -> bool:
    return path.rpartition(".")[2] in names


def _with_list_marks(path: str) -> str:
    parts = path.split(".")
    named = len(parts) > 1 and parts[0] in NAMED
    return ".".join(
        "[]" if part.isdigit() or (named and i == 1) else part for i, part in enumerate(parts)
    )


def _constructor_reader(wrapper: dict, scope: str) -> Reader | None:
    """Return what the optimizer wrapper's constructor reads from `paramwise_cfg`."""
    name = wrapper.get("constructor", "DefaultOptimWrapperConstructor")
    (_, built), *_ = _named_class("optim_wrapper.constructor", name, scope)
    keys = CONSTRUCTOR_KEYS.get(built.__name__) or getattr(built, "paramwise_keys", None)
    if keys is None:
        return None
    return Reader(set(keys), built.__name__, built.__name__ not in LAX_CONSTRUCTORS)


def _class_reader(path: str, node: dict, scope: str) -> Reader | None:
    """Return the arguments of the classes that a dict's `type` may mean."""
    name = node.get("type", DEFAULT_TYPES.get(path))
    found = _named_class(f"{path}.type", name, scope)
    known = {"type", "_scope_", *POPPED_KEYS.get(path.rpartition(".")[2], ())}
    rests = set()
    for root, built in found:
        signature = signature_of(built)
        if signature is None:
            return None
        known |= signature.arguments.keys() | BUILDER_KEYS.get(root, set())
        delegates = DELEGATES & signature.arguments.keys()
        rests.add("none" if delegates else signature.rest)
        for argument in delegates:
            delegate = node.get(argument, signature.arguments[argument])
            for _, other in _named_class(f"{path}.{argument}", delegate, scope):
                known |= (signature_of(other) or signature).arguments.keys()
    owner = name if isinstance(name, str) else getattr(name, "__name__", str(name))
    return Reader(known, owner, rests == {"none"}, "used" not in rests)


def _named_class(where: str, name: Any, scope: str) -> list[tuple[str, Any]]:
    """Return root registry and object for everything that a key which names a class may mean.

    A class itself is in no registry; the name of its root is empty.
    """
    if callable(name):
        return [("", name)]
    if not isinstance(name, str):
        raise InputError(
            f"config key {where}: {name!r} is not the name of a class",
            code="bad-value",
            where=where,
        )
    found = list(_registered(name, scope))
    if not found:
        everything = {known for root in _root_registries() for known in _names(root, scope)}
        raise InputError(
            f"config key {where}: nothing called {name!r} is registered in {scope}"
            f"{suggest(name, everything)}",
            code="unknown-name",
            where=where,
        )
    return found


@cache
def _root_registries() -> list[Registry]:
    return [each for each in vars(mmengine.registry).values() if isinstance(each, Registry)]


def _registered(name: str, scope: str) -> Iterator[tuple[str, Any]]:
    """Yield root registry and object for everything that a `type` may mean in this scope."""
    if "." in name:
        scope, name = name.split(".", 1)
        _import_registries(scope)
    for root in _root_registries():
        registry = root.children.get(scope, root)
        registry.import_from_location()
        for each in dict.fromkeys((registry, root)):
            if name in each.module_dict:
                yield root.name, each.module_dict[name]
                break
    if scope == "mmdet":  # RoI layers and nms are looked up in mmcv.ops, not in a registry
        import mmcv.ops

        if hasattr(mmcv.ops, name):
            yield "mmcv.ops", getattr(mmcv.ops, name)


def _import_registries(scope: str) -> None:
    """Import another library's registries, as mmengine does for a type with its scope."""
    try:
        import_module(f"{scope}.registry")
    except ImportError:
        pass  # its classes are then reported as not registered


def _names(root: Registry, scope: str) -> set[str]:
    registry = root.children.get(scope, root)
    registry.import_from_location()
    return set(registry.module_dict) | set(root.module_dict)
