"""Boxes and masks as people have them (COCO, YOLO, Pascal VOC), read into COCO's form.

COCO is read here; lines of YOLO and elements of VOC by supervision, which leaves three things to
this file: it draws polygons into whole-image masks, which would not fit into memory, writes masks
of several parts as crowds, which nothing would then be scored on, and drops VOC's `difficult`.
"""

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mmengine.logging import print_log
from PIL import Image
from pycocotools import mask as coco_mask

from backbones.errors import InputError

from .coco_annotations import are_numbers, check_rows

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLITS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}
# COCO's files about other things than instances.
NOT_INSTANCES = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")


@dataclass
class Annotations:
    """One split's images and objects.

    Attributes:
        source: file or folder they were read from.
        images: folder that the `file_name` of every image is relative to.
        content: the dict of a COCO annotation file.
        as_is: whether `source` is a file with exactly this content.
    """

    source: Path
    images: Path
    content: dict[str, Any]
    as_is: bool = False


def split_of(path: Path) -> str | None:
    """train, val or test as the words of a relative path have it; None if they say nothing."""
    words = set(re.split(r"[^a-z]+", path.as_posix().lower()))
    found = [split for split, names in SPLITS.items() if words & names]
    return found[-1] if found else None


def find_annotations(root: Path) -> tuple[str, dict[str | None, list[Path]]]:
    """The kind of annotations in a folder, and its files by split.

    Returns:
        COCO, YOLO, Pascal VOC or "", and JSON files, data.yaml (under None) or folders of XML.
    """
    coco: dict[str | None, list[Path]] = {}
    for path in sorted([*root.glob("*.json"), *root.glob("*/*.json"), *root.glob("*/*/*.json")]):
        if not path.name.startswith(NOT_INSTANCES) and _is_coco(path):
            coco.setdefault(split_of(path.relative_to(root)), []).append(path)
    if coco:
        return "COCO", coco
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        if re.search(r"^names\s*:", path.read_text(errors="replace"), re.MULTILINE):
            return "YOLO", {None: [path]}
    if any((root / name).is_file() for name in ("classes.txt", "obj.names")) and any(
        text.name not in ("classes.txt", "notes.txt") for text in root.glob("labels/**/*.txt")
    ):
        return "YOLO", {None: [root / "labels"]}
    voc: dict[str | None, list[Path]] = {}
    files = [*root.glob("*.xml"), *root.glob("*/*.xml"), *root.glob("*/*/*.xml")]
    for folder in sorted({path.parent for path in files}):
        voc.setdefault(split_of(folder.relative_to(root)), []).append(folder)
    return ("Pascal VOC", voc) if voc else ("", {})


def read_annotations(root: Path) -> tuple[str, dict[str | None, Annotations]]:
    """Every split's annotations in a folder; the key None stands for data that is not split.

    Raises:
        InputError: there are none, two for a split, or something in them is wrong.
    """
    kind, found = find_annotations(root)
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in paths[:3])
            raise InputError(
                f"{root}: {len(paths)} sets of {kind} annotations for one split, "
                f"{split or 'unnamed'} ({names}); leave one in the folder"
            )
    if None in found and len(found) > 1:
        raise InputError(
            f"{found[None][0]}: for which split? others in {root} say it; put train, val or test "
            "into the name"
        )
    if kind == "COCO":
        read = {split: _read_coco(root, paths[0]) for split, paths in found.items()}
    elif kind == "YOLO":
        read = _read_yolo(root, found[None][0])
    elif kind == "Pascal VOC":
        read = _read_voc(root, {split: paths[0] for split, paths in found.items()})
    else:
        raise InputError(f"{root}: no COCO, YOLO or Pascal VOC annotations in it")
    empty = [split for split, one in read.items() if not one.content["images"]]
    for split in empty:
        if split != "test":
            raise InputError(f"{read[split].source}: no images for {split or 'any split'}")
        del read[split]
    return kind, read


def _is_coco(path: Path) -> bool:
    """Whether a JSON file holds COCO's keys, without parsing it."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(f'"{key}"'.encode()) >= 0 for key in ("images", "categories", "bbox"))


def _read_coco(root: Path, path: Path) -> Annotations:
    try:
        content = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        as_is = [category["id"] for category in content["categories"]] != []
        for image in content["images"]:
            as_is &= {"width", "height"} <= image.keys()
        for row in content["annotations"]:
            if row["image_id"] not in names:
                raise InputError(f"{path}: annotation {row['id']} is of no image in the file")
            if len(row["bbox"]) != 4:
                raise InputError(f"{path}: annotation {row['id']} has no box of four numbers")
            as_is &= {"area", "iscrowd"} <= row.keys()
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise InputError(f"{path}: {what}; it is no whole COCO annotation file") from None
    check_rows(content, path, sizes=False)
    for row in content["annotations"]:
        if not are_numbers(row["bbox"]):
            raise InputError(f"{path}: annotation {row['id']} has no box of four numbers")
    ids = [row["id"] for row in content["annotations"]]
    if len(set(ids)) < len(ids) or len(names) < len(content["images"]):
        raise InputError(f"{path}: two annotations or two images have the same id")
    images = _image_folder(root, path, list(names.values()))
    for image in content["images"]:
        if not {"width", "height"} <= image.keys():
            image["width"], image["height"] = image_size(images / image["file_name"])
    for row in content["annotations"]:
        row.setdefault("iscrowd", 0)
        row.setdefault("area", row["bbox"][2] * row["bbox"][3])
    return Annotations(path, images, content, as_is)


def _image_folder(root: Path, path: Path, names: Sequence[str]) -> Path:
    """The folder in which all images of a COCO file are."""
    stem = re.sub(r"^_?(instances|annotations)[._-]?|\.coco$", "", path.stem)
    folders = [path.parent, root, root / "images", root / stem, root / "images" / stem]
    folders += sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir())
    split = split_of(path.relative_to(root))
    folders.sort(key=lambda folder: split_of(folder.relative_to(root)) not in (split, None))
    lacking: list[str] = []
    for folder in folders:
        if all((folder / name).is_file() for name in names[:1]):
            lacking = [name for name in names if not (folder / name).is_file()]
            if not lacking:
                return folder
            raise InputError(
                f"{folder / lacking[0]}: no such image; {path} names it, and {len(lacking) - 1} "
                f"more of its {len(names)} are missing"
            )
    first = names[0] if names else "no image"
    raise InputError(f"{path}: {first}, which it names, is nowhere in {root}")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as the image is loaded, turned where its EXIF entry says so.

    Raises:
        InputError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except Exception:  # a damaged file may fail anywhere in a reader
        raise InputError(f"{path}: missing, empty or not an image") from None


def _supervision() -> Any:
    try:
        import supervision.dataset.formats.pascal_voc as voc
        import supervision.dataset.formats.yolo as yolo
    except ImportError:
        raise InputError(
            "YOLO and Pascal VOC are read through supervision, which is not installed: "
            "pip install 'convnext-dense-prediction[convert]'"
        ) from None
    return yolo, voc


def _coco(classes: Sequence[str], images: Iterator[tuple[str, tuple[int, int], list]]) -> dict:
    """A COCO file's content of (name, size, objects); an object is (label, xyxy, mask, crowd)."""
    content: dict[str, Any] = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
    )
    ids = count(1)
    for image_id, (name, (width, height), objects) in enumerate(images, start=1):
        content["images"].append(dict(id=image_id, file_name=name, width=width, height=height))
        for label, (x1, y1, x2, y2), mask, crowd in objects:
            area = (x2 - x1) * (y2 - y1)
            if isinstance(mask, list):
                area = float(coco_mask.area(coco_mask.merge(_codes(mask, height, width))))
            elif mask is not None:
                area = float(coco_mask.area(mask))
                mask = dict(size=mask["size"], counts=mask["counts"].decode())
            row = dict(
                id=next(ids),
                image_id=image_id,
                category_id=label + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=area,
                iscrowd=int(crowd),
            )
            if mask is not None:
                row["segmentation"] = mask
            content["annotations"].append(row)
    return content


def _codes(polygons: list[list[float]], height: int, width: int) -> list[dict]:
    return coco_mask.frPyObjects(polygons, height, width)


def _read_yolo(root: Path, path: Path) -> dict[str | None, Annotations]:
    """YOLO boxes and polygons; an image without a label file is one without objects."""
    yolo, _ = _supervision()
    keypoints = 0
    if path.is_dir():
        names = next(n for n in ("classes.txt", "obj.names") if (root / n).is_file())
        classes = (root / names).read_text().split("\n")
        classes = [name.strip() for name in classes if name.strip()]
        lists: dict[str | None, list[Path]] = {}
        for image in _images_below(root / "images" if (root / "images").is_dir() else root):
            lists.setdefault(split_of(image.relative_to(root).parent), []).append(image)
        if None in lists and len(lists) > 1:
            raise InputError(f"{lists[None][0]}: in no split, but other images of {root} are")
    else:
        try:
            data = yaml.safe_load(path.read_text())
            names = data["names"]
            if isinstance(names, dict):
                if sorted(names) != list(range(len(names))):
                    raise InputError(f"{path}: names are not numbered from 0 on")
                names = [names[key] for key in sorted(names)]
            keypoints = int(np.prod(data.get("kpt_shape") or 0))
            classes = [str(name) for name in names]
        except (yaml.YAMLError, TypeError, KeyError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot be read as YOLO's data.yaml ({line})") from None
        lists = {
            split: _yolo_images(path, data, data[key])
            for split, key in (("train", "train"), ("val", "val"), ("test", "test"))
            if data.get(key) and (split != "test" or _yolo_entry(path, data, str(data[key])))
        }
        if "val" not in lists and data.get("valid"):
            lists["val"] = _yolo_images(path, data, data["valid"])
        if lists.get("val", []) == lists.get("train"):  # as in YOLO's demo sets of a few pictures
            del lists["val"]

    def objects(image: Path, size: tuple[int, int]) -> list:
        labels = _yolo_labels(image)
        if labels is None:
            return []
        lines = [line for line in labels.read_text().splitlines() if line.strip()]
        if keypoints:
            lines = [" ".join(line.split()[:5]) for line in lines]
        try:
            found = yolo.yolo_annotations_to_detections(lines, size, with_masks=False)
        except ValueError as error:
            raise InputError(f"{labels}: {error}") from None
        rows = []
        for line, label, box in zip(lines, found.class_id, found.xyxy.astype(float), strict=True):
            if not 0 <= label < len(classes):
                raise InputError(f"{labels}: class {label}, but there are {len(classes)} names")
            values = line.split()[1:]
            polygon = None
            if len(values) > 5:  # an odd one at the end is a score
                corners = np.array(values[: len(values) // 2 * 2], dtype=float).reshape(-1, 2)
                polygon = [(corners * size).ravel().round(3).tolist()]
            rows.append((int(label), box.round(3).tolist(), polygon, False))
        return rows

    def images(paths: list[Path]) -> Iterator:
        for image in paths:
            size = image_size(image)
            yield _name(image, root), size, objects(image, size)

    read = {}
    for split, paths in lists.items():
        bare = sum(_yolo_labels(image) is None for image in paths)
        if bare == len(paths) and split != "test":
            raise InputError(f"{paths[0] if paths else path}: no label files for {split} images")
        if bare:
            print_log(f"{bare} of {len(paths)} {split} images have no label file", "current")
        if bare < len(paths):
            read[split] = Annotations(path, root, _coco(classes, images(paths)))
    return read


def _yolo_entry(path: Path, data: dict, entry: str) -> Path | None:
    """What an entry of data.yaml points at: below `path:`, the file's folder, or a moved one."""
    below = Path(str(data.get("path") or ""))
    stripped = re.sub(r"^(\.\./)+", "", entry)
    for place in (path.parent / below / entry, path.parent / entry, path.parent / stripped):
        if place.exists():
            return place.resolve()
    return None


def _yolo_images(path: Path, data: dict, entries: str | list[str]) -> list[Path]:
    images: list[Path] = []
    for entry in [entries] if isinstance(entries, str) else entries:
        place = _yolo_entry(path, data, str(entry))
        if place is None:
            raise InputError(f"{path}: {entry}, which it names, does not exist")
        if place.is_dir():
            images += _images_below(place)
        else:
            lines = [line.strip() for line in place.read_text().splitlines() if line.strip()]
            images += [(place.parent / line).resolve() for line in lines]
    return images


def _images_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())


def _yolo_labels(image: Path) -> Path | None:
    """Ultralytics' rule: the last folder called images becomes labels; or beside the image."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    for place in (Path(*parts).with_suffix(".txt"), image.with_suffix(".txt")):
        if place.is_file():
            return place
    return None


def _name(image: Path, root: Path) -> str:
    return str(image.relative_to(root) if image.is_relative_to(root) else image)


def _read_voc(root: Path, folders: dict[str | None, Path]) -> dict[str | None, Annotations]:
    """Pascal VOC; difficult objects become crowds, which are neither learnt nor missed."""
    _, voc = _supervision()
    from defusedxml import ElementTree  # supervision's own reader of XML

    files = {split: sorted(folder.glob("*.xml")) for split, folder in folders.items()}
    sets = root / "ImageSets" / "Main"
    if list(files) == [None] and (sets / "train.txt").is_file():
        folder = folders[None]
        files, folders = {}, {}
        for split in SPLITS:
            if (sets / f"{split}.txt").is_file():
                lines = (sets / f"{split}.txt").read_text().splitlines()
                stems = [line.split()[0] for line in lines if line.strip()]
                files[split] = [folder / f"{stem}.xml" for stem in stems]
                folders[split] = folder
    trees = {}
    for path in {path for paths in files.values() for path in paths}:
        try:
            trees[path] = ElementTree.parse(path).getroot()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; {sets} names it") from None
        except ElementTree.ParseError as error:
            raise InputError(f"{path}: not XML ({error})") from None
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
            image = _voc_image(path, tree.findtext("filename") or path.stem)
            size = image_size(image)
            try:
                detections, _ = voc.detections_from_xml_obj(tree, classes, size)
            except ValueError as error:
                raise InputError(f"{path}: {error}") from None
            rows = []
            for i, element in enumerate(tree.findall("object")):
                box = detections.xyxy[i].astype(float)
                box[:2] += from_zero
                code = None
                if element.find("polygon") is not None:
                    code = coco_mask.encode(np.asfortranarray(detections.mask[i], np.uint8))
                crowd = (element.findtext("difficult") or "0").strip() == "1"
                difficult += crowd
                rows.append((int(detections.class_id[i]), box.tolist(), code, crowd))
            yield _name(image, root), size, rows

    read = {
        split: Annotations(folders[split], root, _coco(classes, images(paths)))
        for split, paths in files.items()
    }
    if from_zero:
        print_log(f"{root}: its boxes count from 0, not from 1 as Pascal VOC's do", "current")
    if difficult:
        print_log(f"{difficult} objects marked difficult are neither learnt nor scored", "current")
    return read


def _voc_image(path: Path, filename: str) -> Path:
    near = [path.parent, *(path.parent.parent / n for n in ("JPEGImages", "images", "Images"))]
    near += [f / path.parent.name for f in near[1:]]  # annotations/train/x.xml, images/train/x.jpg
    near += [path.parents[2] / n / path.parent.name for n in ("JPEGImages", "images")]
    for folder in near:
        for name in (filename, *(path.stem + suffix for suffix in IMAGES)):
            if (folder / name).is_file() and (folder / name).suffix.lower() in IMAGES:
                return folder / name
    raise InputError(f"{path}: its image {filename} is neither beside it nor in JPEGImages, images")
