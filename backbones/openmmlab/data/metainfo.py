"""Find the class names of a data set, and the colours to draw them in."""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from mmengine.registry import DATASETS

from backbones.errors import InputError

from .files import one_line


def dataset_metainfo(dataset: dict, scope: str | None) -> dict:
    """Return class names in label order and the palette: the config's, or the class's own."""
    built = dataset_class(dataset, scope)
    if hasattr(built, "read_classes"):  # its folders are its classes
        return dict(classes=built.read_classes(dataset))
    return {**getattr(built, "METAINFO", {}), **dataset.get("metainfo", {})}


def dataset_class(dataset: dict, scope: str | None) -> type:
    """Return the class that a data set's `type` names, looked up in a scope's registry first."""
    registry = DATASETS.children.get(scope or "", DATASETS)
    built = dataset["type"]
    return cast(type, registry.get(built)) if isinstance(built, str) else built


def class_colours(count: int) -> np.ndarray:
    """Return (count, 3) uint8 RGB colours: neighbours far apart in hue, none too dark or pale."""
    golden = 0.61803398875
    colours = [
        colorsys.hls_to_rgb((0.58 + i * golden) % 1, (0.55, 0.45, 0.62)[i // 8 % 3], 0.75)
        for i in range(count)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8).reshape(count, 3)


def class_names(checkpoint: object) -> tuple[str, ...] | None:
    """Return the class names that mmengine saved with a checkpoint, in the order of its labels."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    names = (meta.get("classes") or meta.get("CLASSES")) if isinstance(meta, dict) else None
    return tuple(names) if names else None


@dataclass(frozen=True)
class Classes:
    """Hold the classes that a config or a checkpoint has before the data is read.

    Attributes:
        names: class names in label order.
        exist: whether a trained model has them, which is to be evaluated.
        certain: whether its checkpoint names them.
    """

    names: tuple[str, ...]
    exist: bool
    certain: bool

    def cover(self, names: list[str], used: Iterable[str], source: Path) -> list[str]:
        """Return these classes if they are the data's in another order, or if a model to evaluate
        has all that occur; else the data's.

        Args:
            names: class names of the data.
            used: those that occur.
            source: source of the data.

        Raises:
            InputError: objects occur that the model to evaluate does not know.
        """
        stray = sorted(set(used) - set(self.names))
        if set(names) == set(self.names) or (self.exist and not stray):
            return list(self.names)
        if self.certain:
            raise InputError(
                f"{one_line(source)}: has {one_line(stray[0])}, which is not one of the model's "
                f"{len(self.names)} classes ({', '.join(self.names[:5])}, ...)",
                code="class-mismatch",
                where=stray[0],
            )
        return names
