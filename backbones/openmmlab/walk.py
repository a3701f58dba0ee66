"""Walk a config: the one recursion over its dicts and lists.

It is outside the packages: all of them read configs, and `data` imports none of the others.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a tree of dicts and lists, parents before children.

    Args:
        config: a dict, a list or a tuple; anything else holds no dicts.
        path: where it stands itself, such as `model`.

    Yields:
        The dotted path of each dict, list indices as numbers, and the dict. Values of a dict may
        be replaced while it is walked.
    """
    if isinstance(config, dict):
        yield path, config
        for key, value in list(config.items()):
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            yield from nodes(value, f"{path}.{i}" if path else str(i))


def class_counts(model: Any, path: str = "model") -> Iterator[tuple[str, dict]]:
    """Yield every dict of a model that states `num_classes`, except the RPN's, and the key's path.

    An RPN tells objects from background, whatever their classes.
    """
    for where, node in nodes(model, path):
        if "num_classes" in node and "RPN" not in str(node.get("type")):
            yield f"{where}.num_classes", node


def replace_type(config: Any, old: str, new: str) -> int:
    """Replace the type named `old`, in any scope, everywhere and return how many there were."""
    found = [node for _, node in nodes(config) if type_name(node) == old]
    for node in found:
        node["type"] = new
    return len(found)


def type_name(node: Mapping) -> str:
    """Return the name of a dict's class without its scope; empty if the dict names none."""
    kind = node.get("type") or ""
    return (kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))).split(".")[-1]
