"""Check class names and counts: datasets against each other and against the model's heads."""

from collections.abc import Iterator, Mapping
from typing import Any

from backbones.openmmlab.data.issues import Issue, first_of
from backbones.openmmlab.walk import nodes, type_name

from .dataset import DatasetPlan
from .plan import RunPlan

# Parts of a model whose num_classes is not the dataset's: proposals have one class, a backbone's
# classifier is cut off, HTC and SCNet learn COCO's stuff beside its things.
OTHER_CLASSES = ("rpn_head", "backbone", "semantic_head", "language_model")
# STDC learns where the outlines are, beside the classes.
OUTLINES = "boundary_threshold"


def check_class_names(plan: RunPlan) -> Iterator[Issue]:
    """Check that every dataset has unique class names, the same in the same order."""
    first: DatasetPlan | None = None
    for dataset in _compared(plan):
        classes = dataset.classes
        if classes is None:
            if not dataset.file_issues:
                yield Issue(
                    "warning", dataset.key, "has no class names to compare",
                    "set metainfo.classes", "class-mismatch",
                )  # fmt: skip
            continue
        if repeated := [name for name in dict.fromkeys(classes) if classes.count(name) > 1]:
            where = f"{dataset.key}.metainfo.classes"
            text = f"names {first_of(repeated)} more than once"
            yield Issue("error", where, text, "name each class once", "class-mismatch")
        first = first or dataset
        if classes != first.classes:
            yield _other_classes(dataset, first)


def _compared(plan: RunPlan) -> list[DatasetPlan]:
    """Return the datasets whose labels are positions in their lists of classes.

    In GLIP and Grounding DINO a label is a phrase of a caption. A tracker's videos have classes
    that it does not track.
    """
    if (plan.config.get("model") or {}).get("language_model"):
        return []
    return [dataset for dataset in plan.datasets if dataset.kind != "video"]


def _other_classes(dataset: DatasetPlan, first: DatasetPlan) -> Issue:
    ours, theirs = dataset.classes or (), first.classes or ()
    more = [name for name in ours if name not in theirs]
    fewer = [name for name in theirs if name not in ours]
    parts = [f"has {first_of(more)}, which {first.key} lacks"] if more else []
    parts += [f"lacks {first_of(fewer)} of {first.key}"] if fewer else []
    parts = parts or [f"has the classes of {first.key} in another order"]
    return Issue(
        "error", dataset.key, f"{' and '.join(parts)}: a label would mean different classes",
        "set both to the same classes", "class-mismatch",
    )  # fmt: skip


def check_head_classes(plan: RunPlan) -> Iterator[Issue]:
    """Check that every head has as many classes as the first dataset with names."""
    dataset = next((dataset for dataset in _compared(plan) if dataset.classes), None)
    if dataset is None:
        return
    known = dataset.classes or ()
    shown = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
    for key, count, allowed in _class_counts(plan.config.get("model"), dataset):
        if count not in allowed:
            expected = " or ".join(map(str, allowed))
            yield Issue(
                "error", key, f"{count} classes, but {dataset.key} has {expected} ({shown})",
                f"--cfg-options {key}={allowed[0]}", "class-mismatch",
            )  # fmt: skip


def _class_counts(model: Any, dataset: DatasetPlan) -> Iterator[tuple[str, int, list[int]]]:
    """Yield (config key, count, possible counts) for every class count in a model."""
    whole = len(dataset.classes or ())
    parts = [len(dataset.metainfo.get(name) or ()) for name in ("thing_classes", "stuff_classes")]
    things, stuff = parts
    for path, node in nodes(model, "model"):
        others = set(path.split(".")).intersection(OTHER_CLASSES)
        if others or "RPN" in type_name(node) or OUTLINES in node:
            continue
        count = node.get("num_classes")
        if isinstance(count, int):
            # Of a panoptic dataset a box head learns the things alone.
            yield f"{path}.num_classes", count, [whole, things] if things else [whole]
        yield from _panoptic_counts(path, node, whole, things, stuff)


def _panoptic_counts(
    path: str, node: Mapping, whole: int, things: int, stuff: int
) -> Iterator[tuple[str, int, list[int]]]:
    of_things, of_stuff = node.get("num_things_classes"), node.get("num_stuff_classes")
    if not isinstance(of_things, int) or not isinstance(of_stuff, int):
        return
    if things:
        yield f"{path}.num_things_classes", of_things, [things]
        yield f"{path}.num_stuff_classes", of_stuff, [stuff]
    else:  # instances are all things, a label map's classes may be all stuff
        yield f"{path}.num_things_classes", of_things, [whole - of_stuff]
