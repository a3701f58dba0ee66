"""Panoptic quality without `panopticapi`, which no package index has.

mmdet reads panoptic label maps and counts matches itself; from `panopticapi` it takes the numbers
in the colours of a map and the sums of PQ (arXiv:1801.00868, section 4). Where the package is
missing, these take its place.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

OFFSET = 256**3  # of the segment in a pair of segments
VOID = 0


@dataclass
class Matches:
    """Matched and unmatched segments of a class, and the IoUs of the matched ones."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: "Matches") -> "Matches":
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self


class PQStat:
    """Matches by class, added up over images."""

    def __init__(self):
        self.pq_per_cat: defaultdict[Any, Matches] = defaultdict(Matches)

    def __getitem__(self, category: Any) -> Matches:
        return self.pq_per_cat[category]

    def __iadd__(self, other: "PQStat") -> "PQStat":
        for category, matches in other.pq_per_cat.items():
            self.pq_per_cat[category] += matches
        return self

    def pq_average(
        self, categories: Mapping[Any, Mapping], isthing: bool | None
    ) -> tuple[dict[str, float], dict[Any, dict[str, float]]]:
        """Return the means over the classes that occur, and the values of each class, in [0, 1].

        Args:
            categories: the classes, each with its `isthing`.
            isthing: whether to take things alone or stuff alone; None takes both.
        """
        by_class: dict[Any, dict[str, float]] = {}
        occurring = []
        for category, info in categories.items():
            if isthing is not None and isthing != (info["isthing"] == 1):
                continue
            found = self.pq_per_cat[category]
            weight = found.tp + 0.5 * found.fp + 0.5 * found.fn
            values = dict(
                pq=found.iou / weight if weight else 0.0,
                sq=found.iou / found.tp if found.tp else 0.0,
                rq=found.tp / weight if weight else 0.0,
            )
            by_class[category] = values
            if weight:
                occurring.append(values)
        means = {
            key: sum(values[key] for values in occurring) / max(len(occurring), 1)
            for key in ("pq", "sq", "rq")
        }
        return {**means, "n": len(occurring)}, by_class


def rgb2id(colour: np.ndarray) -> np.ndarray:
    """Return the numbers of segments (H, W) in the colours (H, W, 3) of a map, red the lowest."""
    red, green, blue = np.moveaxis(colour.astype(np.int32), -1, 0)
    return red + 256 * green + 256**2 * blue


def id2rgb(number: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) of the numbers of segments (H, W)."""
    return np.stack([number // 256**place % 256 for place in range(3)], axis=-1).astype(np.uint8)


def install() -> None:
    """Make `panopticapi` importable, as far as mmdet imports it, where it is not installed."""
    if "panopticapi" in sys.modules or find_spec("panopticapi") is not None:
        return
    contents = {
        "panopticapi": {},
        "panopticapi.utils": dict(rgb2id=rgb2id, id2rgb=id2rgb),
        "panopticapi.evaluation": dict(OFFSET=OFFSET, VOID=VOID, PQStat=PQStat),
    }
    for name, names in contents.items():
        module = ModuleType(name, __doc__)
        module.__spec__ = ModuleSpec(name, None, is_package=name == "panopticapi")
        module.__dict__.update(names)
        sys.modules[name] = module
    package = sys.modules["panopticapi"]
    package.__path__ = []
    for name in ("utils", "evaluation"):
        setattr(package, name, sys.modules[f"panopticapi.{name}"])
