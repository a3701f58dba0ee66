"""Make a panoptic model's config read one's own things and stuff, in COCO's panoptic format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from backbones.errors import InputError

from .coco_file import read_coco
from .config_edits import evaluators, set_class_count
from .converted import below, write
from .files import files_below, one_line
from .formats.coco import image_folder
from .metainfo import Classes, class_colours
from .own_splits import log_reading, no_layout, require
from .splits import split_of

PANOPTIC = "panoptic annotations of COCO's format (panoptic_*.json beside a folder of its PNGs)"


def is_panoptic(config: Config, splits: Sequence[str]) -> bool:
    """Return whether a config's data sets have things and stuff."""
    kinds = (str(config[f"{split}_dataloader"].dataset.get("type")) for split in splits)
    return any(kind.endswith("PanopticDataset") for kind in kinds)


def use_panoptic(
    config: Config, root: Path, folder: Path, splits: Sequence[str], model: Classes
) -> None:
    """Read splits from a folder of panoptic annotations.

    PQ alone is measured: the files hold no boxes or masks of instances. Files whose categories do
    not list the things before the stuff are rewritten, since mmdet's heads number labels so.

    Args:
        config: a panoptic model's config; changed in place.
        root: the folder.
        folder: where rewritten annotations go.
        splits: splits to read.
        model: the classes that the config or checkpoint has.

    Raises:
        InputError: there are no panoptic annotations, or the splits differ in their classes.
    """
    found = {
        split_of(path.relative_to(root)): path
        for path in files_below(root, ".json", depth=2)
        if path.name.lower().startswith("panoptic") and path.with_suffix("").is_dir()
    }
    found.pop(None, None)
    if not found:
        raise no_layout(root, PANOPTIC)
    require(found, splits, root)
    order: list[dict] | None = None
    rows = []
    for split in splits:
        path = found.get(split) or found["val"]
        content, is_utf8 = read_coco(path)
        _check(content, path)
        categories = _things_first(content["categories"], path)
        order = order or categories
        if [(c["name"], c["isthing"]) for c in categories] != [
            (c["name"], c["isthing"]) for c in order
        ]:
            raise InputError(
                f"{one_line(path)}: its categories are not those of the other splits",
                code="class-mismatch",
                where=path,
            )
        images = image_folder(root, path, [image["file_name"] for image in content["images"]])[0]
        source = path
        if categories != content["categories"] or not is_utf8:
            path = folder / path.name
            write(path, json.dumps({**content, "categories": categories}))
        _read(config, split, root, path, source.with_suffix(""), images)
        segments = sum(len(row["segments_info"]) for row in content["annotations"])
        rows.append((split, str(source), len(content["images"]), f"{segments} segments"))
    assert order is not None
    things = tuple(category["name"] for category in order if category["isthing"])
    stuff = tuple(category["name"] for category in order if not category["isthing"])
    names = model.cover([*things, *stuff], (*things, *stuff), next(iter(found.values())))
    if names != [*things, *stuff]:
        raise InputError(
            f"{one_line(root)}: its classes are the model's in another order or only some of them; "
            "list the same categories in its files",
            code="class-mismatch",
            where=root,
        )
    for split in splits:
        config[f"{split}_dataloader"].dataset.metainfo = dict(
            classes=names,
            thing_classes=things,
            stuff_classes=stuff,
            palette=class_colours(len(names)).tolist(),
        )
    set_class_count(config.model, len(things), len(stuff))
    log_reading(root, PANOPTIC, names, rows)


def _check(content: Any, path: Path) -> None:
    """Reject content without the rows of COCO's panoptic format."""
    needed = dict(
        images={"id", "file_name", "width", "height"},
        annotations={"image_id", "file_name", "segments_info"},
        categories={"id", "name"},
    )
    for key, keys in needed.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise InputError(
                f"{one_line(path)}: has no list of {key}", code="bad-annotations", where=path
            )
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not keys <= row.keys():
                raise InputError(
                    f"{one_line(path)}: {key}[{number}] has not all of {', '.join(sorted(keys))}",
                    code="bad-annotations",
                    where=path,
                )


def _things_first(categories: list[dict], path: Path) -> list[dict]:
    if lacking := [c for c in categories if c.get("isthing") not in (0, 1)]:
        raise InputError(
            f"{one_line(path)}: category {one_line(lacking[0].get('name'))} does not say whether "
            "it isthing (1) or stuff (0)",
            code="bad-annotations",
            where=path,
        )
    return sorted(categories, key=lambda category: -category["isthing"])


def _read(config: Config, split: str, root: Path, path: Path, segments: Path, images: Path) -> None:
    dataset = config[f"{split}_dataloader"].dataset
    dataset.type = "CocoPanopticDataset"
    dataset.data_root = str(root)
    dataset.ann_file = str(path)
    dataset.data_prefix = dict(img=below(images, root), seg=below(segments, root))
    metrics = [m for m in evaluators(config, split) if "Panoptic" in str(m.get("type"))]
    for metric in metrics:
        metric.update(ann_file=str(path), seg_prefix=str(segments))
    if metrics:
        config[f"{split}_evaluator"] = metrics
