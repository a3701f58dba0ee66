"""Checks of a config against its data, made before anything expensive starts."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from backbones.errors import InputError

WHERE_TO_GET = "tools/prepare_data.py makes or downloads it, --data ROOT names another folder"


def check_data(config: Config, splits: tuple[str, ...]) -> None:
    """Hold data folders, annotation files, class names and every head's class count together.

    Args:
        config: a validated config.
        splits: which of train, val and test will be read.

    Raises:
        InputError: the first thing that is missing, cut off or contradicts.
    """
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            if split == "test":
                raise InputError(f"{config.filename}: has no test_dataloader to evaluate on")
            continue
        dataset = loader.dataset
        key = f"{split}_dataloader.dataset"
        scope = config.get("default_scope")
        built = _dataset_class(dataset, scope)
        if hasattr(built, "check_files"):
            built.check_files(dataset)
        classes = dataset_metainfo(dataset, scope).get("classes")
        if classes is None:
            continue
        if not hasattr(built, "check_files"):
            _check_files(dataset, key, classes)
        for path, count in _class_counts(config.model, "model"):
            if count != len(classes):
                raise InputError(
                    f"config key {path}: {count} classes, but {key} has {len(classes)} "
                    f"({', '.join(classes[:3])}, ...)"
                )


def dataset_metainfo(dataset: dict, scope: str | None) -> dict:
    """Class names in the order of their labels, and palette: the config's over the class's own."""
    built = _dataset_class(dataset, scope)
    if hasattr(built, "read_classes"):  # its folders are its classes
        return dict(classes=built.read_classes(dataset))
    return {**getattr(built, "METAINFO", {}), **dataset.get("metainfo", {})}


def _dataset_class(dataset: dict, scope: str | None) -> type:
    registry = DATASETS.children.get(scope, DATASETS)
    built = dataset["type"]
    return registry.get(built) if isinstance(built, str) else built


def _check_files(dataset: dict, key: str, classes: tuple[str, ...]) -> None:
    root = Path(dataset.get("data_root") or "")
    if not root.is_dir():
        raise InputError(f"{root}: no such data folder ({key}.data_root); {WHERE_TO_GET}")
    for name, folder in dataset.get("data_prefix", {}).items():
        if folder and not (root / folder).is_dir():
            raise InputError(f"{root / folder}: no such folder ({key}.data_prefix.{name})")
    if annotations := dataset.get("ann_file"):
        check_coco(root / annotations, classes, f"{key}.ann_file")


def check_coco(path: Path, classes: tuple[str, ...], key: str) -> None:
    """Check that a COCO annotation file is whole and names exactly the model's classes.

    Only its end and its categories are parsed: COCO's own file has 450 MB.

    Raises:
        InputError: it is missing, cut off, or its categories are others.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such annotation file ({key}); {WHERE_TO_GET}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the annotation file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if not text[-64:].rstrip().endswith(b"}"):
            raise InputError(f"{path}: the annotation file is cut off; copy or download it again")
        start = text.find(b'"categories"')
        if start < 0:
            raise InputError(f"{path}: has no categories; it is not a COCO annotation file")
        start = text.find(b"[", start)
        try:
            # Categories of the largest public sets fit in a megabyte.
            categories, _ = json.JSONDecoder().raw_decode(text[start : start + 2**20].decode())
            names = [category["name"] for category in categories]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: categories cannot be read ({error})") from None
    unknown = [name for name in names if name not in classes]
    lacking = [name for name in classes if name not in names]
    if unknown or lacking:
        parts = []
        if unknown:
            parts.append(f"has {len(unknown)} the config does not ({', '.join(unknown[:3])})")
        if lacking:
            parts.append(f"lacks {len(lacking)} of the config's ({', '.join(lacking[:3])})")
        raise InputError(
            f"{path}: {len(names)} categories against {len(classes)} classes: it "
            f"{' and '.join(parts)}; set metainfo.classes and every num_classes"
        )


def _class_counts(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "num_classes" and "RPN" not in str(node.get("type")):
                yield f"{path}.{key}", value
            else:
                yield from _class_counts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _class_counts(value, f"{path}.{i}")
