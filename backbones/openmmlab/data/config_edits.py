"""Edit the parts of a config that depend on the data: pipeline steps and class counts of heads."""

from collections.abc import Iterator
from typing import Any

from backbones.openmmlab.walk import class_counts, nodes


def typed_dicts(node: Any, kind: str) -> Iterator[dict]:
    """Yield every dict whose type ends in this name, at any depth."""
    return (found for _, found in nodes(node) if str(found.get("type")).endswith(kind))


def evaluators(config: Any, split: str) -> list[Any]:
    """Return the configs of a split's metrics, of which a config may list several."""
    given = config.get(f"{split}_evaluator") or []
    return given if isinstance(given, list) else [given]


def set_class_count(node: Any, things: int, stuff: int = 0) -> None:
    """Set the class count of every head except the RPN, which only tells objects from background.

    Class weights that are equal for all classes and differ only for the background, the last, get
    the new length.

    Args:
        node: config of a model; changed in place.
        things: number of classes, in a panoptic model those of things.
        stuff: number of a panoptic model's other classes.
    """
    for _, head in class_counts(node):
        head["num_classes"] = things
    for _, head in nodes(node):
        if "num_things_classes" in head and "num_stuff_classes" in head:
            head.update(num_things_classes=things, num_stuff_classes=stuff)
        weights = head.get("class_weight")
        if isinstance(weights, list) and len(weights) > 1 and len(set(weights[:-1])) == 1:
            head["class_weight"] = [weights[0]] * (things + stuff) + [weights[-1]]
