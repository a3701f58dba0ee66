"""Parts of a config that follow the data: steps of pipelines and the heads' class counts."""

from collections.abc import Iterator
from typing import Any

from backbones.openmmlab.walk import class_counts, nodes


def typed_dicts(node: Any, kind: str) -> Iterator[dict]:
    """Yield every dict whose type ends in this name, however deep."""
    return (found for _, found in nodes(node) if str(found.get("type")).endswith(kind))


def set_class_count(node: Any, count: int) -> None:
    """Set the classes of every head but the RPN, which knows objects only.

    A head of things and stuff gets all of them as things. Weights of classes that differ for the
    background alone, the last, are laid out anew.
    """
    for _, head in class_counts(node):
        head["num_classes"] = count
    for _, head in nodes(node):
        if "num_things_classes" in head and "num_stuff_classes" in head:
            head.update(num_things_classes=count, num_stuff_classes=0)
        weights = head.get("class_weight")
        if isinstance(weights, list) and len(weights) > 1 and len(set(weights[:-1])) == 1:
            head["class_weight"] = [weights[0]] * count + [weights[-1]]
