"""Parts of a config that follow the data: steps of pipelines and the heads' class counts."""

from collections.abc import Iterator
from typing import Any


def typed_dicts(node: Any, kind: str) -> Iterator[dict]:
    """Yield every dict whose type ends in this name, however deep."""
    if isinstance(node, dict):
        if str(node.get("type")).endswith(kind):
            yield node
        for value in node.values():
            yield from typed_dicts(value, kind)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from typed_dicts(value, kind)


def set_class_count(node: Any, count: int) -> None:
    """Set num_classes of every head but the RPN, which knows objects only."""
    if isinstance(node, dict):
        if "num_classes" in node and "RPN" not in str(node.get("type")):
            node["num_classes"] = count
        for value in node.values():
            set_class_count(value, count)
    elif isinstance(node, list | tuple):
        for value in node:
            set_class_count(value, count)
