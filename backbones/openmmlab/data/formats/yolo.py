"""Read YOLO's text files of boxes and polygons; supervision parses their lines.

supervision draws polygons into whole-image masks, which would not fit into memory: they are kept
here as written.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.data.files import (
    IMAGES,
    entries,
    files_below,
    files_in,
    find_file,
    folders_in,
    one_line,
    read_text,
)
from backbones.openmmlab.data.rasters import image_size
from backbones.openmmlab.data.splits import split_of

from .content import (
    Annotations,
    Found,
    bad_row,
    coco_content,
    relative_name,
    supervision_readers,
)

CLASS_FILES = ("classes.txt", "obj.names")
ENTRIES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass
class _Layout:
    """Hold what a data.yaml states, or what is known of a folder without one.

    Attributes:
        source: that file or folder.
        classes: names in the order of their labels.
        images: images by split.
        key_points: numbers a line holds behind its box for key points.
    """

    source: Path
    classes: list[str]
    images: dict[str | None, list[Path]]
    key_points: int = 0


def find(root: Path) -> Found:
    """Find data.yaml, or else the folder of labels beside a list of classes."""
    for path in files_in(root, ".yaml", ".yml"):
        text = path.read_bytes().replace(b"\0", b"")  # which `_from_yaml` decodes
        if re.search(rb"(^|[\r\n])(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\"']?names[\"']?\s*:", text):
            return {None: [path]}
    labels = next((f for f in folders_in(root) if f.name.lower() == "labels"), None)
    if labels and any(find_file(root / name) for name in CLASS_FILES):
        texts = (
            p for p in files_below(labels, ".txt") if p.name not in (*CLASS_FILES, "notes.txt")
        )
        if any(texts):
            return {None: [labels]}
    return {}


def read(root: Path, path: Path) -> dict[str | None, Annotations]:
    """Read YOLO boxes and polygons; an image without a label file has no objects.

    Args:
        root: folder of the data set.
        path: what `find` has found.

    Raises:
        InputError: a file or a line of one cannot be read, or a split has no labels.
    """
    yolo, _ = supervision_readers()
    layout = _from_folder(root, path) if path.is_dir() else _from_yaml(root, path)

    def images(paths: list[Path]) -> Iterator:
        for image in paths:
            size = image_size(image)
            labels = label_file(image)
            objects = _objects(labels, size, layout, yolo) if labels else []
            yield relative_name(image, root), size, objects

    read = {}
    for split, paths in layout.images.items():
        bare = sum(label_file(image) is None for image in paths)
        if bare == len(paths) and split != "test":
            raise InputError(
                f"{one_line(paths[0] if paths else path)}: no label files for {split or 'any'} "
                "images",
                code="no-data",
                where=paths[0] if paths else path,
            )
        if bare:
            print_log(f"{bare} of {len(paths)} {split} images have no label file", "current")
        if bare < len(paths):
            read[split] = Annotations(path, root, coco_content(layout.classes, images(paths)))
    return read


def _objects(labels: Path, size: tuple[int, int], layout: _Layout, yolo: Any) -> list[tuple]:
    """Read the objects of one image's label file."""
    lines = [line for line in read_text(labels).split("\n") if line.strip()]
    if layout.key_points:
        lines = [" ".join(line.split()[:5]) for line in lines]
    try:
        found = yolo.yolo_annotations_to_detections(lines, size, with_masks=False)
    except ValueError as error:
        raise bad_row(labels, one_line(error)) from None
    rows = []
    boxes = found.xyxy.astype(float)
    for number, (line, label, box) in enumerate(
        zip(lines, found.class_id, boxes, strict=True), start=1
    ):
        if not 0 <= label < len(layout.classes):
            raise bad_row(
                labels, f"line {number}: class {label}, but there are {len(layout.classes)} names"
            )
        values = line.split()[1:]
        if not np.isfinite(box).all():
            raise bad_row(labels, f"line {number}: has non-finite coordinates")
        polygon = None
        if len(values) > 5:  # an odd one at the end is a score
            corners = np.array(values[: len(values) // 2 * 2], dtype=float).reshape(-1, 2)
            polygon = [(corners * size).ravel().round(3).tolist()]
        rows.append((int(label), box.round(3).tolist(), polygon, False))
    return rows


def _from_folder(root: Path, labels: Path) -> _Layout:
    """Read a folder without data.yaml; its folders' names give the splits."""
    names = next(found for name in CLASS_FILES if (found := find_file(root / name)))
    classes = [name.strip() for name in read_text(names).split("\n") if name.strip()]
    folder = next((f for f in folders_in(root) if f.name.lower() == "images"), root)
    images: dict[str | None, list[Path]] = {}
    for image in files_below(folder, *IMAGES):
        images.setdefault(split_of(image.relative_to(root).parent), []).append(image)
    if None in images and len(images) > 1:
        raise InputError(
            f"{one_line(images[None][0])}: belongs to no split, but others in {one_line(root)} do",
            code="bad-annotations",
            where=images[None][0],
        )
    return _Layout(labels, classes, images)


def _from_yaml(root: Path, path: Path) -> _Layout:
    try:
        data = yaml.safe_load(read_text(path))
        names = data["names"]
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise bad_row(path, "names are not numbered from 0")
            names = [names[key] for key in sorted(names)]
        if not isinstance(names, list) or not names:
            raise bad_row(path, "names is not a list of classes")
        key_points = int(np.prod(data.get("kpt_shape") or 0))
    except InputError:
        raise
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{one_line(path)}: cannot be read as YOLO's data.yaml ({one_line(line)})",
            code="bad-annotations",
            where=path,
        ) from None
    images: dict[str | None, list[Path]] = {}
    for split, keys in ENTRIES.items():
        entry = next((data[key] for key in keys if data.get(key)), None)
        if entry and (split != "test" or _place(path, data, str(entry))):
            images[split] = _images_of(path, data, entry)
    if images.get("val", []) == images.get("train"):  # as in YOLO's demo sets of a few images
        del images["val"]
    return _Layout(path, [str(name) for name in names], images, key_points)


def _place(path: Path, data: dict, entry: str) -> Path | None:
    """Find the path of an entry of data.yaml: below `path:`, the file's folder, or a moved one.

    Links are not resolved: labels are found by the path as it is given.
    """
    below = Path(str(data.get("path") or ""))
    entry = entry.replace("\\", "/")
    stripped = re.sub(r"^(\.\./)+", "", entry)
    for place in (path.parent / below / entry, path.parent / entry, path.parent / stripped):
        if place.exists():
            return _plain(place)
    return None


def _plain(path: Path) -> Path:
    """Remove `.` and `..` from a path, unless they lead through a link."""
    plain = Path(os.path.normpath(path))
    return plain if plain.exists() and plain.samefile(path) else path


def _images_of(path: Path, data: dict, given: object) -> list[Path]:
    images: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        place = _place(path, data, str(entry))
        if place is None:
            raise InputError(
                f"{one_line(path)}: {one_line(entry)}, which it names, does not exist",
                code="not-found",
                where=path,
            )
        if place.is_dir():
            images += files_below(place, *IMAGES)
        else:
            lines = (line.strip() for line in read_text(place).split("\n"))
            images += [_listed(place, line, path) for line in lines if line]
    return images


def _listed(place: Path, line: str, path: Path) -> Path:
    """Find an image that a list names, relative to the list or to data.yaml."""
    for text in (line, line.replace("\\", "/")):
        for folder in (place.parent, path.parent):
            if found := find_file(folder / text):
                return _plain(found)
    raise InputError(
        f"{one_line(place.parent / line)}: no such image; {one_line(place)} names it",
        code="bad-image",
        where=place.parent / line,
    )


def label_file(image: Path) -> Path | None:
    """Find an image's label file, by its path as given and then by its resolved link.

    The rule is Ultralytics': the last folder called images becomes labels; or beside the image.
    """
    for path in dict.fromkeys((image, Path(os.path.realpath(image)))):
        parts = list(path.parts)
        last = [i for i in range(len(parts) - 1) if parts[i].lower() == "images"][-1:]
        for i in last:
            siblings = {p.name.lower(): p.name for p in entries(Path(*parts[:i]))}
            parts[i] = siblings.get("labels", "labels")
        for place in (Path(*parts).with_suffix(".txt"), path.with_suffix(".txt")):
            if found := find_file(place):
                return found
    return None
