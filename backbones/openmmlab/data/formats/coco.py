"""Find COCO annotation files of users, and complete and repair them where that is unambiguous."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.data.coco_file import check_rows, is_coco, read_coco
from backbones.openmmlab.data.coco_ids import number_anew
from backbones.openmmlab.data.files import files_below, find_file, folders_in, one_line
from backbones.openmmlab.data.masks import (
    are_numbers,
    area_of,
    box_of,
    mask_fault,
    rectangle,
    tidied,
)
from backbones.openmmlab.data.rasters import image_size
from backbones.openmmlab.data.splits import split_of

from .content import Annotations, Found, bad_row

# COCO's files about other things than instances.
NOT_INSTANCES = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")


def find(root: Path) -> tuple[Found, InputError | None]:
    """Find the COCO files in a folder and below it.

    Returns:
        The files by split, and the error of the first JSON file that cannot be read at all.
    """
    found: Found = {}
    unreadable = None
    for path in files_below(root, ".json", depth=2):
        if path.name.lower().startswith(NOT_INSTANCES):
            continue
        try:
            if is_coco(path):
                found.setdefault(split_of(path.relative_to(root)), []).append(path)
        except InputError as error:
            unreadable = unreadable or error
    return found, unreadable


def read(root: Path, path: Path) -> Annotations:
    """Read a COCO file whole and convert it into the form that COCO's own tools accept.

    Ids are renumbered if they are invalid, boxes, areas and flags that are missing are
    filled in, polygons are brought into one form; each is logged in a line with a count.

    Raises:
        InputError: a row contradicts itself, or an image is missing.
    """
    content, is_utf8 = read_coco(path)
    check_rows(content, path, own=True)
    lines = number_anew(content, path)
    names = [image["file_name"] for image in content["images"]]
    images, renamed = image_folder(root, path, names)
    for image in content["images"]:
        image["file_name"] = renamed.get(image["file_name"], image["file_name"])
    lines += [f"{len(renamed)} file names are spelled differently from the files'"] * bool(renamed)
    unsized = [i for i in content["images"] if not (i.get("width") and i.get("height"))]
    for image in unsized:
        image["width"], image["height"] = image_size(images / image["file_name"])
    lines += [f"{len(unsized)} images without width and height: measured"] * bool(unsized)
    lines += complete(content, path)
    for line in lines:
        print_log(f"{one_line(path)}: {line}", "current")
    return Annotations(path, images, content, is_utf8 and not lines and bool(content["categories"]))


def complete(content: dict[str, Any], path: Path) -> list[str]:
    """Complete and repair boxes, masks, areas and flags of a COCO file's content.

    Args:
        content: rows with sound ids, images with sizes; changed in place.
        path: the file.

    Returns:
        A line for each kind of change.

    Raises:
        InputError: a box or mask is wrong in a way that leaves open what was meant.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    counts: dict[str, int] = {}

    def changed(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    thin = []
    for number, row in enumerate(content["annotations"]):
        size = sizes[row["image_id"]]
        label = f"annotations[{number}] (annotation {row['id']})"
        given = row.get("segmentation")
        mask = tidied(given)
        if mask is None:
            if given and any(given):
                thin.append(row)
            row.pop("segmentation", None)
        else:
            if fault := mask_fault(mask, size):
                raise bad_row(path, f"{label}: segmentation: {one_line(fault)}")
            if mask != given:
                row["segmentation"] = mask
                changed("polygons not in COCO's form [[x, y, ...], ...]: converted")
        if not row.get("bbox"):
            if mask is None:
                raise bad_row(path, f"{label} has neither bbox nor segmentation")
            row["bbox"] = box_of(mask, size)
            changed("objects without bbox: computed from their masks")
        elif len(row["bbox"]) != 4 or not are_numbers(row["bbox"]):
            raise bad_row(path, f"{label} has no box of four numbers")
        if "iscrowd" not in row or row["iscrowd"] not in (0, 1):
            row["iscrowd"] = int(bool(row.get("iscrowd")))
            changed("objects without iscrowd: set to 0")
        width, height = row["bbox"][2:]
        if not row.get("area"):
            area = width * height if mask is None else area_of(mask, size)
            if "area" not in row or row["area"] is None or area > 0:
                row["area"] = area
                changed("objects without area: computed from their masks or boxes")
    for line in _cover_thin(content["annotations"], thin):
        changed(line)
    return [f"{count} {what}" for what, count in counts.items()]


def _cover_thin(rows: Sequence[dict], thin: Sequence[dict]) -> Iterator[str]:
    """Mark objects whose outlines have no area as crowds, and give crowds without a mask one.

    Where no object has a mask, boxes alone are trained, and nothing has to be covered.
    """
    if not any(row.get("segmentation") for row in rows):
        yield from ["outlines of fewer than three points: only boxes are read"] * len(thin)
        return
    for row in thin:
        row["iscrowd"] = 1
        yield "outlines of fewer than three points: these objects are neither trained nor scored"
    for row in rows:
        if row["iscrowd"] and not row.get("segmentation"):
            row["segmentation"] = rectangle(row["bbox"])
            if not any(row is other for other in thin):
                yield "crowds without a mask: their boxes are used as masks"


def image_folder(root: Path, path: Path, names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Find the folder in which all images of a COCO file are.

    Returns:
        The folder, and the names on the disk of those files that differ in case.
    """
    stem = re.sub(r"^_?(instances|annotations)[._-]?|\.coco$", "", path.stem)
    folders = [path.parent, root, root / "images", root / stem, root / "images" / stem]
    inside = folders_in(root)
    folders += sorted([*inside, *(deeper for folder in inside for deeper in folders_in(folder))])
    split = split_of(path.relative_to(root))
    folders.sort(key=lambda folder: split_of(folder.relative_to(root)) not in (split, None))
    if not names:
        raise InputError(f"{one_line(path)}: lists no image", code="no-data", where=path)
    folder = next((folder for folder in folders if _find(folder, names[0])), None)
    if folder is None:
        raise InputError(
            f"{one_line(path)}: {one_line(names[0])}, which it lists, is not in {one_line(root)}",
            code="bad-image",
            where=path,
        )
    renamed, lacking = {}, []
    for name in names:
        found = _find(folder, name)
        if found is None:
            lacking.append(name)
        elif found != folder / name:
            renamed[name] = os.path.relpath(found, folder)
    if lacking:
        raise InputError(
            f"{one_line(folder / lacking[0])}: no such image; {one_line(path)} names it, and "
            f"{len(lacking) - 1} more of its {len(names)} are missing",
            code="bad-image",
            where=folder / lacking[0],
        )
    return folder, renamed


def _find(folder: Path, name: str) -> Path | None:
    """Find an image by its name in a COCO file, which may be a Windows path."""
    found = find_file(folder / name)
    return found or find_file(folder / name.replace("\\", "/"))
