"""What a data set calls its classes, and the colours they are drawn in."""

import colorsys

import numpy as np
from mmengine.registry import DATASETS


def dataset_metainfo(dataset: dict, scope: str | None) -> dict:
    """Class names in the order of their labels, and palette: the config's over the class's own."""
    built = dataset_class(dataset, scope)
    if hasattr(built, "read_classes"):  # its folders are its classes
        return dict(classes=built.read_classes(dataset))
    return {**getattr(built, "METAINFO", {}), **dataset.get("metainfo", {})}


def dataset_class(dataset: dict, scope: str | None) -> type:
    """The class that a data set's `type` names, looked up in a scope's registry first."""
    registry = DATASETS.children.get(scope, DATASETS)
    built = dataset["type"]
    return registry.get(built) if isinstance(built, str) else built


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB colours, neighbours far apart in hue, none too dark or pale."""
    golden = 0.61803398875
    colours = [
        colorsys.hls_to_rgb((0.58 + i * golden) % 1, (0.55, 0.45, 0.62)[i // 8 % 3], 0.75)
        for i in range(count)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8).reshape(count, 3)


def class_names(checkpoint: object) -> tuple[str, ...] | None:
    """Names of the classes that mmengine saved with a checkpoint, in the order of its labels."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    names = (meta.get("classes") or meta.get("CLASSES")) if isinstance(meta, dict) else None
    return tuple(names) if names else None
