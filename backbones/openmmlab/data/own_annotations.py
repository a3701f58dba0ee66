"""Make a detector's config read one's own boxes and masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError

from .annotations import find_annotations, read_annotations
from .config_edits import evaluators, set_class_count, typed_dicts
from .converted import below, write
from .files import one_line
from .formats.content import Annotations
from .label_folders import find_label_maps
from .metainfo import Classes, class_colours
from .own_splits import (
    DETECTION,
    SEGMENTATION,
    log_reading,
    no_layout,
    other_task,
    require,
    take_unsplit,
)
from .validation_split import choose_validation


def use_annotations(
    config: Config, root: Path, folder: Path, splits: Sequence[str], model: Classes
) -> None:
    """Read splits from a folder of COCO, YOLO or Pascal VOC annotations.

    Args:
        config: a detector's config; changed in place.
        root: the folder.
        folder: where converted annotations go.
        splits: splits to read.
        model: the classes that the config or checkpoint has.

    Raises:
        InputError: there are no annotations, or something in them is wrong.
    """
    if not find_annotations(root)[0]:
        if find_label_maps(root):
            raise other_task(config, root, SEGMENTATION, "a detector", DETECTION)
        raise no_layout(root, DETECTION)
    kind, read = read_annotations(root)
    if only := take_unsplit(read, splits):
        read |= _split_annotations(only, root, folder)
    require(read, splits, root)
    names = _category_order(read, model)
    with_masks = _have_masks(read)
    for split in splits:
        name = split if split in read else "val"
        one = read[name]
        path = one.source if one.as_is else folder / f"instances_{name}.json"
        if not one.as_is:
            write(path, json.dumps(one.content))
        dataset = config[f"{split}_dataloader"].dataset
        dataset.type = "CocoDataset"
        dataset.data_root = str(root)
        dataset.ann_file = str(path)
        dataset.data_prefix = dict(img=below(one.images, root))
        dataset.metainfo = dict(classes=names, palette=class_colours(len(names)).tolist())
        for evaluator in evaluators(config, split):
            evaluator.ann_file = str(path)
    set_class_count(config.model, len(names))
    if not with_masks:
        _leave_masks_out(config, splits, root, keep_head=model.exist)
    log_reading(root, kind, names, [(s, *_count(read.get(s) or read["val"])) for s in splits])


def _count(one: Annotations) -> tuple[str, int, str]:
    return str(one.source), len(one.content["images"]), f"{len(one.content['annotations'])} objects"


def _split_annotations(
    only: Annotations, root: Path, folder: Path
) -> dict[str | None, Annotations]:
    """Split the images of one set of annotations into training and validation."""
    files = {image["id"]: only.images / image["file_name"] for image in only.content["images"]}
    chosen = choose_validation(files.values(), root, folder)
    made: dict[str | None, Annotations] = {}
    for split in ("train", "val"):
        ids = {i for i, path in files.items() if (path in chosen) == (split == "val")}
        content = {
            **only.content,
            "images": [image for image in only.content["images"] if image["id"] in ids],
            "annotations": [r for r in only.content["annotations"] if r["image_id"] in ids],
        }
        made[split] = Annotations(only.source, only.images, content)
    return made


def _category_order(read: Mapping[str | None, Annotations], model: Classes) -> tuple[str, ...]:
    """Bring the categories of every split into one order and return it.

    mmdet numbers labels by the order of the categories in the file, whatever `metainfo` says.
    """
    base = read.get("train") or read.get("val") or read["test"]
    used: set[str] = set()
    for one in read.values():
        name_of = {c["id"]: c["name"] for c in one.content["categories"]}
        used |= {name_of[row["category_id"]] for row in one.content["annotations"]}
    categories = base.content["categories"]
    names = list(dict.fromkeys(category["name"] for category in categories))
    over = {c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]}
    # Roboflow's first category is the group of all others and labels nothing.
    groups = [name for name in names if name in over and name not in used and len(names) > 1]
    names = [name for name in names if name not in groups]
    if stray := sorted(used - set(names)):
        where = next(
            one.source
            for one in read.values()
            if stray[0] in {category["name"] for category in one.content["categories"]}
        )
        raise InputError(
            f"{one_line(where)}: has objects of {one_line(stray[0])}, which "
            f"{one_line(base.source)} lacks",
            code="class-mismatch",
            where=where,
        )
    if not names:
        raise InputError(
            f"{one_line(base.source)}: no objects and no classes in its "
            f"{len(base.content['images'])} images",
            code="no-data",
            where=base.source,
        )
    names = model.cover(names, used, base.source)
    if groups:
        print_log(
            f"{one_line(base.source)}: {one_line(groups[0])} is a group of classes, not a class",
            "current",
        )
    for one in read.values():
        old = one.content["categories"]
        if [category["name"] for category in old] == names:
            continue
        one.as_is = False
        name_of = {category["id"]: category["name"] for category in old}
        one.content["categories"] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
        one.content["annotations"] = [
            {**row, "category_id": names.index(name_of[row["category_id"]]) + 1}
            for row in one.content["annotations"]
        ]
    return tuple(names)


def _have_masks(read: Mapping[str | None, Annotations]) -> bool:
    """Return whether the objects have masks; raise an error if only some have."""
    bare, masked = [], 0
    for one in read.values():
        for row in one.content["annotations"]:
            if row.get("segmentation"):
                masked += 1
            elif not row["iscrowd"]:
                bare.append((one, row))
    if bare and masked:
        one, row = bare[0]
        names = {image["id"]: image["file_name"] for image in one.content["images"]}
        raise InputError(
            f"{one_line(one.source)}: {len(bare)} of {len(bare) + masked} objects have no mask, "
            f"the first is annotation {row['id']} in {one_line(names[row['image_id']])}; give all "
            "of them masks, or none to train on boxes alone",
            code="bad-annotations",
            where=one.source,
        )
    return not bare and masked > 0


def _leave_masks_out(config: Config, splits: Sequence[str], root: Path, keep_head: bool) -> None:
    """Remove masks from the config; a model to evaluate keeps its mask head unused."""
    for step in typed_dicts(config._cfg_dict, "LoadAnnotations"):
        step["with_mask"] = False
    for split in splits:
        for evaluator in evaluators(config, split):
            if "metric" in evaluator:
                evaluator["metric"] = ["bbox"]
    roi_head: dict[str, Any] = config.model.get("roi_head") or {}
    if roi_head.get("mask_head") and not keep_head:
        roi_head["mask_head"] = roi_head["mask_roi_extractor"] = None
        print_log(f"{one_line(root)}: boxes without masks: the model has no mask head", "current")
    elif roi_head.get("mask_head"):
        print_log(f"{one_line(root)}: boxes without masks: only box AP is computed", "current")
