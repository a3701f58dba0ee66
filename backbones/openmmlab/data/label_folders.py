"""Read folders of images and label maps: pairs, class names and the meaning of pixel values."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from backbones.errors import InputError, UnreadableImage

from .decoding import read_label_map
from .files import IMAGES, RASTERS, files_in, find_file, folders_in, one_line, read_text
from .issues import first_of
from .rasters import image_size
from .splits import SPLITS, split_of

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass",
)  # fmt: skip
LABEL_ENDINGS = ("", "_mask", "_label", "_labels", "_gt", "_seg")
CLASS_FILES = (
    "classes.txt", "classes.json", "palette.json", "class_dict.csv", "_classes.csv", "labelmap.txt",
)  # fmt: skip
# Names that say that pixels of this value belong to no class.
IGNORED_NAMES = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
IGNORED = 255  # the value that losses and mIoU leave out

Pair = tuple[Path, Path]


@dataclass
class ClassList:
    """Hold class names and, if stated, their values in the label maps.

    Attributes:
        source: file that names them; None if nothing does.
        names: class names in label order.
        values: pixel value to name; empty where only the order is known.
        colours: (R, G, B) to name; empty for label maps of values.
    """

    source: Path | None = None
    names: list[str] = field(default_factory=list)
    values: dict[int, str] = field(default_factory=dict)
    colours: dict[tuple[int, int, int], str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name of the file; empty where nothing names the classes."""
        return self.source.name if self.source else ""


@dataclass
class LabelRule:
    """Define how pixels of the label maps become labels.

    Attributes:
        names: the classes in the order of their labels.
        labels: pixel value or colour to label; 255 is ignored.
        palette: (R, G, B) of each class where the data says.
        statement: the rule in words.
    """

    names: list[str]
    labels: dict[Any, int]
    palette: list[list[int]] | None
    statement: str

    @property
    def reduces_zero(self) -> bool:
        """Return whether it is mmseg's `reduce_zero_label`: 0 is ignored, others are one less."""
        rule = {IGNORED: IGNORED, 0: IGNORED}
        return all(rule.get(value, _minus_one(value)) == x for value, x in self.labels.items())

    @property
    def is_plain(self) -> bool:
        """Return whether the pixel values are the labels."""
        return all(value == label for value, label in self.labels.items())


def _minus_one(value: Any) -> Any:
    return value - 1 if isinstance(value, int) else None


def find_label_maps(root: Path) -> dict[str | None, tuple[Path, Path]]:
    """Find folders of images and of label maps by split; None stands for data without splits."""
    found: dict[str | None, tuple[Path, Path]] = {}
    images, labels = _named(root, IMAGE_FOLDERS), _named(root, LABEL_FOLDERS)
    if images and labels:
        below = {split_of(Path(folder.name)): folder for folder in folders_in(images)}
        for split, folder in below.items():
            if split and (labels / folder.name).is_dir():
                found[split] = folder, labels / folder.name
        if not found:
            found[None] = images, labels
    else:
        for folder in folders_in(root):
            split = split_of(Path(folder.name))
            images, labels = _named(folder, IMAGE_FOLDERS), _named(folder, LABEL_FOLDERS)
            if split and images and labels:
                found[split] = images, labels
            elif split and any(p.stem.lower().endswith("_mask") for p in files_in(folder, ".png")):
                found[split] = folder, folder
    return {split: folders for split, folders in found.items() if files_in(folders[1], ".png")}


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    folders = {folder.name.lower(): folder for folder in folders_in(root)}
    return next((folders[name] for name in names if name in folders), None)


def read_pairs(root: Path) -> dict[str | None, list[Pair]]:
    """List images with their label maps by split, by ImageSets/Segmentation's lists if present.

    Raises:
        InputError: an image has no label map, or there are no images.
    """
    read: dict[str | None, list[Pair]] = {}
    for split, (images, labels) in find_label_maps(root).items():
        maps = {path.stem.lower(): path for path in files_in(labels, ".png")}
        maps |= {path.stem: path for path in files_in(labels, ".png")}
        pairs, bare = [], []
        for image in files_in(images, *IMAGES, *RASTERS):
            stem = image.stem
            if images == labels and stem.lower().endswith(LABEL_ENDINGS[1:]):
                continue
            stems = [stem + end for end in LABEL_ENDINGS[images == labels :]]
            stems += [each.lower() for each in stems]
            label = next((maps[each] for each in stems if each in maps), None)
            pairs.append((image, label)) if label else bare.append(image)
        # VOC labels a part of its pictures only; its lists say which.
        lists = root / "ImageSets" / "Segmentation"
        if split is None and find_file(lists / "train.txt"):
            by_stem = {image.stem: (image, label) for image, label in pairs}
            for name in SPLITS:
                if listed := find_file(lists / f"{name}.txt"):
                    stems = [line.strip() for line in read_text(listed).split("\n") if line.strip()]
                    lacking = [stem for stem in stems if stem not in by_stem]
                    if lacking:
                        raise InputError(
                            f"{one_line(listed)}: {one_line(lacking[0])} has no label map",
                            code="bad-labels",
                            where=listed,
                        )
                    read[name] = [by_stem[stem] for stem in stems]
            continue
        if bare:
            raise InputError(
                f"{one_line(bare[0])}: no label map {one_line(bare[0].stem)}.png in "
                f"{one_line(labels)}, and none for {len(bare) - 1} more of "
                f"{len(bare) + len(pairs)} images",
                code="bad-labels",
                where=bare[0],
            )
        if not pairs:
            raise InputError(
                f"{one_line(images)}: no images in this folder", code="no-data", where=images
            )
        read[split] = pairs
    return read


def read_classes(root: Path) -> ClassList:
    """Read class names from the first of `CLASS_FILES` in the folder.

    Raises:
        InputError: the file cannot be understood.
    """
    places = [root / name for name in CLASS_FILES] + [root / "train" / n for n in CLASS_FILES]
    path = next((found for place in places if (found := find_file(place))), None)
    if path is None:
        return ClassList()
    found = ClassList(path)
    text = read_text(path)
    try:
        if path.name.lower() == "classes.txt":
            found.names = [line.strip() for line in text.split("\n") if line.strip()]
        elif path.suffix.lower() == ".json":
            _from_json(json.loads(text), found)
        elif path.suffix.lower() == ".csv":
            rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row]
            for row in rows[1:]:  # a line of headings comes first
                if len(row) >= 4:  # name, r, g, b
                    found.colours[_colour(row[1:4])] = row[0]
                else:  # pixel value, class
                    found.values[int(row[0])] = row[1]
        else:  # CVAT's: name:r,g,b:parts:actions
            for line in text.split("\n"):
                if line.strip() and not line.startswith("#"):
                    name, colour = line.split(":")[:2]
                    found.colours[_colour(colour.split(","))] = name
        found.names = found.names or [*found.values.values(), *found.colours.values()]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise _bad_list(path, f"cannot be read as a list of classes ({error})") from None
    if not found.names:
        raise _bad_list(path, "lists no class")
    if len(set(found.names)) < len(found.names):
        twice = next(name for name in found.names if found.names.count(name) > 1)
        raise _bad_list(path, f"names {twice!r} twice")
    return found


def _bad_list(path: Path, what: str) -> InputError:
    return InputError(f"{one_line(path)}: {one_line(what)}", code="bad-labels", where=path)


def _from_json(data: Any, found: ClassList) -> None:
    if isinstance(data, Mapping) and isinstance(data.get("classes", data.get("names")), list):
        data = data.get("classes", data.get("names"))
    if isinstance(data, list):
        if all(isinstance(item, str) for item in data):
            found.names = data
        else:  # COCO's categories: id and name
            found.values = {int(item["id"]): str(item["name"]) for item in data}
        return
    for key, value in data.items():
        if isinstance(value, str):
            found.values[int(key)] = value
        elif isinstance(value, int):
            found.values[value] = key
        else:
            found.colours[_colour(value[:3])] = key
    if found.values:
        found.values = dict(sorted(found.values.items()))


def _colour(channels: Sequence[Any]) -> tuple[int, int, int]:
    r, g, b = map(int, channels)
    return r, g, b


def label_rule(where: Mapping[Any, Path], classes: ClassList) -> LabelRule:
    """Decide what the pixel values in all label maps mean.

    Args:
        where: every value or colour that occurs and a file with it, as from `values_in`.
        classes: what `read_classes` found.

    Raises:
        InputError: a value or colour occurs that no class is for, or values leave gaps and nothing
            names them.
    """
    present = set(where) - {IGNORED}
    if classes.colours or classes.values:
        means: dict = dict(classes.colours or classes.values)
        statement = f"{'colours' if classes.colours else 'values'} as in {classes.file_name}"
        ignored = {value for value, name in means.items() if name.lower() in IGNORED_NAMES}
        names = [name for value, name in means.items() if value not in ignored]
        labels = {v: IGNORED if v in ignored else names.index(n) for v, n in means.items()}
        if not classes.colours:
            labels[IGNORED] = labels.get(IGNORED, IGNORED)
            if 0 not in labels and min(labels) == 1:
                labels[0] = IGNORED
                statement += ", 0 is ignored"
        unknown = [value for value in where if value not in labels]
        if unknown:
            kind = "colour" if classes.colours else "value"
            raise _bad_map(
                where[unknown[0]],
                f"holds {kind} {unknown[0]}, which {classes.source} does not name",
            )
        palette = None
        if classes.colours:
            colour = {name: list(value) for value, name in classes.colours.items()}
            palette = [colour[name] for name in names]
        return LabelRule(names, labels, palette, _with_ignored(statement, ignored, where))

    names, highest = list(classes.names), max(present, default=0)
    if not names and set(where) == {0, IGNORED}:  # a mask of one thing, drawn in white
        names = ["background", "foreground"]
    if len(names) == 1:
        names = ["background", *names]
    if len(names) == 2 and set(where) == {0, IGNORED}:
        return LabelRule(names, {0: 0, IGNORED: 1}, None, f"0 is {names[0]}, 255 is {names[1]}")
    if not names:
        if 2 * len(present) < highest + 1:
            given = ", ".join(f'"{value}": "..."' for value in sorted(where)[:3])
            raise _bad_map(
                where[highest],
                f"values {first_of(sorted(where))} occur, but no file states their classes; put "
                f"classes.json, {{{given}}}, into the folder",
            )
        names = [f"label {value}" for value in range(highest + 1)]
        labels = {value: value for value in range(len(names))}
        statement = f"no list of classes: assuming one class per value up to {highest}"
    elif highest == len(names):  # a value for every name and 0 besides
        labels = {0: IGNORED} | {i: i - 1 for i in range(1, len(names) + 1)}
        statement = f"values 1 to {len(names)} are {classes.file_name}'s classes, 0 is ignored"
    elif highest > len(names):
        raise _bad_map(
            where[highest],
            f"holds value {highest}, but {classes.source} names {len(names)} classes",
        )
    else:
        labels = {value: value for value in range(len(names))}
        statement = f"values 0 to {len(names) - 1} are {classes.file_name}'s classes"
    ignored = {v for v, i in labels.items() if i < IGNORED and names[i].lower() in IGNORED_NAMES}
    if ignored:
        kept = [name for name in names if name.lower() not in IGNORED_NAMES]
        labels = {
            v: i if i == IGNORED or v in ignored else kept.index(names[i])
            for v, i in labels.items()
        } | dict.fromkeys(ignored, IGNORED)
        names, statement = kept, f"values in the order of {classes.file_name}"
    labels[IGNORED] = IGNORED
    return LabelRule(names, labels, None, _with_ignored(statement, ignored, where))


def _with_ignored(statement: str, ignored: set, where: Mapping) -> str:
    if ignored:
        values = ", ".join(str(value) for value in sorted(ignored))
        statement += f", {values} (by its name) is ignored"
    return statement + (", 255 is ignored" if IGNORED in where else "")


def values_in(pairs: Iterable[Pair], coloured: bool) -> dict[Any, Path]:
    """Find every value or colour in the label maps, each with one file that holds it.

    Args:
        pairs: images and their label maps.
        coloured: colours are to be found.

    Raises:
        InputError: a label map cannot be read, has another size than its image, or holds colours
            where values are to be found, or the reverse.
    """
    where: dict[Any, Path] = {}
    for image, path in track(list(pairs), "reading label maps", transient=True):
        pixels = load_label_map(path)
        if pixels.shape[1::-1] != image_size(image):
            size = "{} x {}".format(*pixels.shape[1::-1])
            wanted = "{} x {}".format(*image_size(image))
            raise _bad_map(
                path, f"the label map is {size}, its image {one_line(image.name)} {wanted}"
            )
        if coloured:
            if pixels.ndim == 2:
                raise _bad_map(path, "has values, but a palette of colours is given")
            flat = pixels[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
            found = [(int(x) >> 16, int(x) >> 8 & 255, int(x) & 255) for x in np.unique(flat)]
        else:
            if pixels.ndim == 3:
                raise _bad_map(
                    path,
                    "the label map is coloured (RGB); put palette.json, "
                    '{"name": [r, g, b], ...}, into the folder to assign the colours to classes',
                )
            found = np.unique(pixels).tolist()
            if found[-1] > IGNORED:
                raise _bad_map(path, f"holds value {found[-1]}; labels must not exceed 255")
        for value in found:
            where.setdefault(value, path)
    return where


def _bad_map(path: Path, what: str) -> InputError:
    return InputError(f"{one_line(path)}: {what}", code="bad-labels", where=path)


def load_label_map(path: Path) -> np.ndarray:
    """Load (H, W) values, palette indices for palette images; (H, W, 3) for a coloured label map.

    Raises:
        InputError: the file is missing or not an image, or holds no whole numbers.
    """
    try:
        pixels = read_label_map(path)
    except OSError:
        raise UnreadableImage(
            f"{one_line(path)}: missing, empty, cut off or not an image", where=path
        ) from None
    if pixels.dtype.kind not in "bui" or pixels.min(initial=0) < 0:
        raise _bad_map(path, "a label map must hold one non-negative integer per pixel")
    if pixels.ndim == 3 and pixels.shape[2] == 2:  # grey with transparency
        pixels = pixels[..., 0]
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def converted(pixels: np.ndarray, labels: Mapping[Any, int]) -> np.ndarray:
    """Convert a label map of values (H, W) or colours (H, W, 3) into uint8 labels (H, W)."""
    if pixels.ndim == 3:
        flat = pixels[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        out = np.full(flat.shape, IGNORED, np.uint8)
        for (r, g, b), label in labels.items():
            out[flat == r * 65536 + g * 256 + b] = label
        return out
    table = np.full(256, IGNORED, np.uint8)
    for value, label in labels.items():
        table[value] = label
    return table[pixels]
