"""Edit the parts of a config that depend on the data: pipeline steps and class counts of heads."""

from collections.abc import Iterator
from typing import Any

from backbones.openmmlab.walk import class_counts, nodes


def typed_dicts(node: Any, kind: str) -> Iterator[dict]:
    """Yield every dict whose type ends in this name, at any depth."""
    return (found for _, found in nodes(node) if str(found.get("type")).endswith(kind))


def set_class_count(node: Any, count: int) -> None:
    """Set num_classes of every head except the RPN, which only tells objects from background."""
    for _, head in class_counts(node):
        head["num_classes"] = count
