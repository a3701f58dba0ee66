"""Count what of a COCO dataset remains for training or evaluation after everything dropped."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from backbones.openmmlab.data.files import one_line
from backbones.openmmlab.data.issues import Issue

from .plan import RunPlan


def check_remaining(plan: RunPlan) -> Iterator[Issue]:
    """Count what mmdet and COCO's evaluation ignore in each COCO dataset."""
    for dataset in plan.datasets:
        if dataset.kind != "coco" or not dataset.is_readable or dataset.classes is None:
            continue
        coco = dataset.coco
        read = {row["id"] for row in coco.categories if row["name"] in dataset.classes}
        # A part of several may be empty.
        parts = [each for each in plan.datasets if set(each.splits) & set(dataset.splits)]
        worst = "error" if len(parts) == 1 else "warning"
        settings = dataset.settings
        if dataset.trained_on:
            rule = {} if settings.get("test_mode") else settings.get("filter_cfg") or {}
            yield from check_trained(
                coco.images, coco.annotations, read, one_line(coco.path), rule.get("min_size", 0),
                bool(rule.get("filter_empty_gt")), worst,
            )  # fmt: skip
        evaluated = [split for split in dataset.splits if split != "train"]
        scored = [e for s in evaluated for e in plan.evaluators(s) if not e.get("format_only")]
        if scored:
            yield from check_evaluated(
                coco.images, coco.annotations, read, one_line(coco.path), worst
            )  # fmt: skip


def check_trained(
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Collection[object],
    where: str,
    min_size: int = 0,
    drop_empty: bool = False,
    worst: str = "error",
) -> Iterator[Issue]:
    """Count the images and objects that mmdet's CocoDataset drops before training.

    Args:
        images: rows with `id`, `width` and `height`.
        annotations: rows with `image_id`, `category_id` and `bbox`, and perhaps `area`, `iscrowd`
            and `ignore`.
        categories: ids of the categories that are read.
        where: what the issues are about.
        min_size: `filter_cfg.min_size`.
        drop_empty: `filter_cfg.filter_empty_gt`.
        worst: severity where nothing is left.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    rows = list(annotations)
    if not rows:
        yield _no_objects(len(sizes), where, worst)
        return
    occupied = {row["image_id"] for row in rows if row["category_id"] in categories}
    left_out: Counter[str] = Counter()
    kept = set()
    for number, size in sizes.items():
        if drop_empty and number not in occupied:
            left_out["without objects (filter_cfg.filter_empty_gt)"] += 1
        elif min(size) < min_size:
            left_out[f"smaller than {min_size} pixels (filter_cfg.min_size)"] += 1
        else:
            kept.add(number)
    yield from _counts("image", len(kept), left_out, where, "train on", worst)
    if not kept:
        return
    reasons = (_dropped(row, sizes, categories) for row in rows if row["image_id"] in kept)
    dropped = Counter(reasons)
    left = dropped.pop("", 0)
    yield from _counts("object", left, dropped, where, "train on", worst)


def check_evaluated(
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Collection[object],
    where: str,
    worst: str = "error",
) -> Iterator[Issue]:
    """Count the objects that COCO's evaluation does not score; arguments as in `check_trained`."""
    sizes = {image["id"] for image in images}
    dropped: Counter[str] = Counter()
    rows = list(annotations)
    if not rows:
        yield _no_objects(len(sizes), where, worst)
        return
    left = flat = 0
    for row in rows:
        if row["category_id"] not in categories:
            dropped["of categories that are not read"] += 1
        elif row["image_id"] not in sizes:
            dropped["of images that are not in the file"] += 1
        elif row.get("iscrowd"):
            dropped["crowds (iscrowd 1)"] += 1
        else:
            left += 1
            flat += _area(row) <= 0
    yield from _counts("object", left, dropped, where, "evaluate on", worst)
    if flat:
        yield Issue(
            "warning", where, f"{flat} of {left} objects to evaluate on have area 0",
            "AP of small objects counts them all: write the area of each mask or box",
            "bad-annotations",
        )  # fmt: skip


def _dropped(row: Mapping[str, Any], sizes: Mapping, categories: Collection[object]) -> str:
    """Return why an object is not trained on, by CocoDataset.parse_data_info's rules; or ''."""
    if row.get("ignore"):
        return "marked ignore"
    if row["category_id"] not in categories:
        return "of categories that are not read"
    try:
        x, y, width, height = map(float, row["bbox"])
    except (TypeError, ValueError):
        return "with a bbox that is not four numbers"
    across, down = sizes[row["image_id"]]
    inside = min(x + width, across) > max(x, 0) and min(y + height, down) > max(y, 0)
    if not inside:
        return "outside their images"
    if not (width >= 1 and height >= 1):
        return "thinner than a pixel"
    if _area(row) <= 0:
        return "of area 0"
    return "crowds (iscrowd 1)" if row.get("iscrowd") else ""


def _area(row: Mapping[str, Any]) -> float:
    if isinstance(area := row.get("area"), int | float):
        return area
    box = row["bbox"]
    return box[2] * box[3] if len(box) == 4 else 0


def _no_objects(images: int, where: str, worst: str) -> Issue:
    advice = "is it the intended file?"
    return Issue(worst, where, f"no objects in its {images} images", advice, "no-data")


def _counts(
    noun: str, left: int, dropped: Counter[str], where: str, purpose: str, worst: str
) -> Iterator[Issue]:
    total = left + dropped.total()
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    if not left:
        text = f"no {noun} of {total} is left to {purpose}: {reasons}"
        advice = "correct the annotations or the filter"
        yield Issue(worst, where, text, advice, "no-data")
    elif dropped:
        text = f"{left} of {total} {noun}s are left to {purpose}: {reasons}"
        severity = "warning" if 2 * left < total else "note"
        yield Issue(severity, where, text, code="no-data")
