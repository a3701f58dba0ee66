"""Parts of a config that follow the data: steps of pipelines and the heads' class counts."""

from collections.abc import Iterator
from typing import Any

from backbones.openmmlab.walk import class_counts, nodes


def typed_dicts(node: Any, kind: str) -> Iterator[dict]:
    """Yield every dict whose type ends in this name, however deep."""
    return (found for _, found in nodes(node) if str(found.get("type")).endswith(kind))


def set_class_count(node: Any, count: int) -> None:
    """Set num_classes of every head but the RPN, which knows objects only."""
    for _, head in class_counts(node):
        head["num_classes"] = count
