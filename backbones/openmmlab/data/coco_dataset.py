"""What a config's COCO data set needs to be true before anything is trained or scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from backbones.errors import InputError

from .coco_annotations import CocoAnnotations
from .coco_file import read_categories
from .decoding import Header
from .files import one_line
from .image_files import read_headers
from .issues import Issue, first_of

T = TypeVar("T")


def check_categories(path: Path, classes: Sequence[str]) -> None:
    """Check early that an annotation file is whole and names exactly the config's classes.

    Args:
        path: the file.
        classes: the config's.

    Raises:
        InputError: it is missing, cut off, or its categories are others.
    """
    names = read_categories(path)
    unknown = [one_line(name) for name in names if name not in classes]
    lacking = [one_line(name) for name in classes if name not in names]
    if unknown or lacking:
        parts = []
        if unknown:
            parts.append(f"has {first_of(unknown)}, which the config does not")
        if lacking:
            parts.append(f"lacks {first_of(lacking)} of the config's")
        raise InputError(
            f"{one_line(path)}: {len(names)} categories against {len(classes)} classes: it "
            f"{' and '.join(parts)}; set metainfo.classes and every num_classes",
            code="class-mismatch",
            where=path,
        )


def check_coco_dataset(
    dataset: Mapping[str, Any],
    classes: Sequence[str],
    *,
    training: bool,
    evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    images: int = 1000,
) -> tuple[list[Issue], dict[Path, Header]]:
    """Read a split's annotation file whole and hold it against itself, the config and the images.

    Args:
        dataset: the config's dict of the data set, with `ann_file`.
        classes: the config's, in the order of their labels.
        training: the split is trained on.
        evaluator: the config's of the split; masks that it scores are checked too.
        images: how many are opened, evenly spread; 0 for all.

    Returns:
        The issues, the file's own first, and the headers of the images that were opened.

    Raises:
        InputError: the file is not JSON, or not in COCO's format.
    """
    root = Path(dataset.get("data_root") or "")
    annotations = CocoAnnotations(root / dataset["ann_file"], classes)
    scorers = [evaluator] if isinstance(evaluator, Mapping) else evaluator or []
    steps = [step for step in dataset.get("pipeline", ()) if isinstance(step, Mapping)]
    with_mask = any("segm" in (scorer.get("metric") or ()) for scorer in scorers)
    with_mask |= any(step.get("with_mask") for step in steps)
    issues = [*annotations.check(with_mask)]
    issues += annotations.check_left(dataset.get("filter_cfg"), training)
    folder = root / (dataset.get("data_prefix") or {}).get("img", "")
    paths = [folder / name for name in dict.fromkeys(annotations.names())]
    sample = set(spread(paths, images))
    # Opening is what takes long; whether a file is there can be asked of all.
    headers, unread = read_headers([p for p in paths if p in sample or not p.is_file()])
    return [*issues, *unread, *annotations.check_sizes(folder, headers)], headers


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of these, evenly spread; all of them if there are no more or `count` is 0."""
    if count == 0 or len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
