"""The dicts inside a config."""

from collections.abc import Iterator, Mapping
from typing import Any


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Mapping]]:
    """Yield every dict of a config, the outer before the inner, with its dotted key."""
    if isinstance(config, Mapping):
        yield path, config
    items = config.items() if isinstance(config, Mapping) else ()
    if isinstance(config, list | tuple):
        items = enumerate(config)
    for key, value in items:
        yield from nodes(value, f"{path}.{key}" if path else str(key))


def type_name(node: Mapping) -> str:
    """Return the name of a dict's class without its scope; empty if the dict names none."""
    kind = node.get("type") or ""
    return (kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))).split(".")[-1]
