"""Read Pascal VOC's XML files; supervision parses their elements but drops `difficult`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from pycocotools import mask as coco_mask

from backbones.errors import InputError
from backbones.openmmlab.data.files import (
    IMAGES,
    decode_text,
    files_below,
    files_in,
    find_file,
    one_line,
    read_text,
)
from backbones.openmmlab.data.rasters import image_size
from backbones.openmmlab.data.splits import SPLITS, split_of

from .content import (
    Annotations,
    Found,
    bad_row,
    coco_content,
    relative_name,
    supervision_readers,
)

DECLARATION = re.compile(rb"^\s*<\?xml[^>]*encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"'][^>]*\?>")


def find(root: Path) -> Found:
    """Find the folders of XML files in a folder and below it, by split."""
    found: Found = {}
    for folder in sorted({path.parent for path in files_below(root, ".xml", depth=2)}):
        found.setdefault(split_of(folder.relative_to(root)), []).append(folder)
    return found


def read(root: Path, folders: dict[str | None, Path]) -> dict[str | None, Annotations]:
    """Read Pascal VOC; difficult objects become crowds, which are ignored in training and scoring.

    Args:
        root: folder of the data set.
        folders: folders of XML files by split.

    Raises:
        InputError: a file is not XML, or its image or an object cannot be read.
    """
    _, voc = supervision_readers()
    files, folders = _files(root, folders)
    trees = {path: _tree(path) for path in {path for paths in files.values() for path in paths}}
    objects = [element for tree in trees.values() for element in tree.findall("object")]
    classes = sorted({element.findtext("name") or "" for element in objects})
    # VOC counts pixels from 1. A coordinate of 0 shows that the writer did not.
    lowest = {element.findtext(f"bndbox/{s}") for element in objects for s in ("xmin", "ymin")}
    from_zero = any(re.fullmatch(r"\s*0(\.0*)?\s*", text or "") for text in lowest)
    difficult = 0

    def images(paths: list[Path]) -> Iterator:
        nonlocal difficult
        for path in paths:
            tree = trees[path]
            image = _image(path, tree.findtext("filename") or path.stem)
            size = image_size(image)
            try:
                detections, _ = voc.detections_from_xml_obj(tree, classes, size)
            except (ValueError, AttributeError, TypeError) as error:
                raise bad_row(path, one_line(error)) from None
            rows = []
            for i, element in enumerate(tree.findall("object")):
                box = detections.xyxy[i].astype(float)
                if not np.isfinite(box).all():
                    raise bad_row(path, f"object {i + 1}: has non-finite coordinates")
                box[:2] += from_zero
                code = None
                if element.find("polygon") is not None:
                    code = coco_mask.encode(np.asfortranarray(detections.mask[i], np.uint8))
                crowd = (element.findtext("difficult") or "0").strip() == "1"
                difficult += crowd
                rows.append((int(detections.class_id[i]), box.tolist(), code, crowd))
            yield relative_name(image, root), size, rows

    read = {
        split: Annotations(folders[split], root, coco_content(classes, images(paths)))
        for split, paths in files.items()
    }
    if from_zero:
        print_log(
            f"{one_line(root)}: its coordinates start at 0, not at 1 as in Pascal VOC", "current"
        )
    if difficult:
        print_log(f"{difficult} objects marked difficult are neither trained nor scored", "current")
    return read


def _files(
    root: Path, folders: dict[str | None, Path]
) -> tuple[dict[str | None, list[Path]], dict[str | None, Path]]:
    """List the XML files of every split, by ImageSets/Main if present, and their folders."""
    sets = root / "ImageSets" / "Main"
    if list(folders) != [None] or not find_file(sets / "train.txt"):
        return {split: files_in(folder, ".xml") for split, folder in folders.items()}, folders
    folder = folders[None]
    files: dict[str | None, list[Path]] = {}
    for split in SPLITS:
        if listed := find_file(sets / f"{split}.txt"):
            stems = [line.split()[0] for line in read_text(listed).split("\n") if line.strip()]
            files[split] = [_named(folder, stem, listed) for stem in stems]
    return files, {split: folder for split in files}


def _named(folder: Path, stem: str, listed: Path) -> Path:
    for name in (f"{stem}.xml", f"{Path(stem).stem}.xml"):
        if path := find_file(folder / name):
            return path
    raise InputError(
        f"{one_line(folder / stem)}.xml: no such file; {one_line(listed)} names it",
        code="not-found",
        where=folder / f"{stem}.xml",
    )


def _tree(path: Path) -> Any:
    """Parse an XML file in any encoding that Python knows."""
    from defusedxml import ElementTree  # supervision's own reader of XML

    content = path.read_bytes()
    try:
        if declared := DECLARATION.match(content):
            encoding = declared[1].decode()
            text = content[declared.end() :].decode(encoding)
        else:
            text = re.sub(r"^\s*<\?xml[^>]*\?>", "", decode_text(content, path))
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{one_line(path)}: not XML ({one_line(error)})", code="broken-file", where=path
        ) from None


def _image(path: Path, filename: str) -> Path:
    """Find an XML file's image: beside it, or in JPEGImages or images."""
    filename = filename.strip().replace("\\", "/")
    near = [path.parent, *(path.parent.parent / n for n in ("JPEGImages", "images", "Images"))]
    near += [f / path.parent.name for f in near[1:]]  # annotations/train/x.xml, images/train/x.jpg
    near += [path.parents[2] / n / path.parent.name for n in ("JPEGImages", "images")]
    for folder in near:
        for name in (filename, *(path.stem + suffix for suffix in IMAGES)):
            found = find_file(folder / name)
            if found and found.suffix.lower() in IMAGES:
                return found
    raise InputError(
        f"{one_line(path)}: its image {one_line(filename)} is neither beside it nor in JPEGImages "
        "or images",
        code="bad-image",
        where=path,
    )
