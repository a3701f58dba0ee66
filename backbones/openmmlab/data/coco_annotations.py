"""Faults in a COCO annotation file that mmdet drops, repairs or trips over without a word."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbones.errors import InputError

from .image_files import Header
from .issues import Issue, first_of

# What the rows of a COCO file hold, and what each may be.
ROWS = {
    "images": dict(id=(int, str), file_name=str, width=int, height=int),
    "annotations": dict(id=(int, str), image_id=(int, str), category_id=(int, str), bbox=list),
    "categories": dict(id=(int, str), name=str),
}
OPTIONAL = dict(area=float, iscrowd=int, segmentation=(list, dict, type(None)))
LARGEST = 1e9  # beyond any number of pixels
LARGEST_ID = 2**63  # COCO's own crowds have ids of twelve digits


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        InputError: it is not JSON, or nested without end.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def check_rows(content: object, path: Path, sizes: bool = True) -> None:
    """Refuse what is not in COCO's format, by the first row that is not.

    Args:
        content: of the file.
        path: the file.
        sizes: images have to have their width and height.

    Raises:
        InputError: a list, a row or a value of it is missing or of another kind.
    """
    for name, kinds in ROWS.items():
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise InputError(f"{path}: not COCO's format, no list {name!r} in it")
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(f"{path}: not COCO's format, {name}[{number}] is no dict")
            for key in kinds:
                if key not in row and (sizes or key not in ("width", "height")):
                    raise InputError(f"{path}: not COCO's format, no {key!r} in {name}[{number}]")
            if name == "annotations":
                kinds = kinds | {key: kind for key, kind in OPTIONAL.items() if key in row}
            for key, kind in kinds.items():
                if key in row and not _is(row[key], kind):
                    raise InputError(
                        f"{path}: not COCO's format, {key} of {name}[{number}] is {row[key]!r:.40}"
                    )
            if name == "images" and min(row.get("width", 1), row.get("height", 1)) < 1:
                raise InputError(f"{path}: {name}[{number}] has a width or height below 1")


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if int in kinds or float in kinds:  # JSON of other languages has 3.0 and false for them
        largest = LARGEST_ID if str in kinds else LARGEST
        number = isinstance(value, int | float) and abs(value) < largest
        if number and (float in kinds or value == int(value)):
            return True
        kinds = tuple(k for k in kinds if k not in (int, float))
    return isinstance(value, kinds)


def are_numbers(values: object) -> bool:
    """Whether it is a list of finite numbers, none beyond any number of pixels."""
    return isinstance(values, list) and all(_is(value, float) for value in values)


class CocoAnnotations:
    """A COCO annotation file, read whole.

    Args:
        path: the file.
        classes: the config's, in the order of their labels.

    Raises:
        InputError: it is not JSON, or lacks a list that COCO's format has.
    """

    def __init__(self, path: Path, classes: Sequence[str]):
        self.path, self.classes = path, classes
        content = read_json(path)
        check_rows(content, path)
        self.images, self.annotations, self.categories = (content[key] for key in ROWS)
        self._by_image = {image["id"]: image for image in self.images}

    def names(self) -> list[str]:
        """File names of the images."""
        return [image["file_name"] for image in self.images]

    def check(self, with_mask: bool) -> Iterator[Issue]:
        """Findings about the file alone.

        Args:
            with_mask: masks are trained.
        """
        yield from self._check_ids()
        yield from self._check_categories()
        yield from self._check_boxes()
        if with_mask:
            yield from self._check_masks()

    def _found(
        self, severity: str, what: str, ids: Sequence[object], advice: str, name: str = "annotation"
    ) -> Iterator[Issue]:
        if ids:
            text = f"{name} {'id ' * (name != 'image file')}{first_of(ids)}: {what}"
            if len(ids) > 3:
                text = f"{len(ids)} {name}s, first {', '.join(map(str, ids[:3]))}: {what}"
            yield Issue(severity, str(self.path), text, advice)

    def _check_ids(self) -> Iterator[Issue]:
        for rows, name in ((self.images, "image"), (self.annotations, "annotation")):
            repeated = [each for each, count in Counter(r["id"] for r in rows).items() if count > 1]
            yield from self._found(
                "error", "several have this id, all but one are lost", repeated,
                "number them anew", name,
            )  # fmt: skip
        files = Counter(self.names())
        repeated = [name for name, count in files.items() if count > 1]
        yield from self._found(
            "warning", "listed more than once", repeated, "keep one entry", "image file"
        )
        orphans = [a["id"] for a in self.annotations if a["image_id"] not in self._by_image]
        yield from self._found(
            "error", "their image is not in the file", orphans, "add the image or take them out"
        )

    def _check_categories(self) -> Iterator[Issue]:
        known = {category["id"]: category["name"] for category in self.categories}
        repeated = [
            n for n, count in Counter(c["id"] for c in self.categories).items() if count > 1
        ]
        yield from self._found(
            "error", "several have this id", repeated, "give each its own", "category"
        )
        unknown = [a["id"] for a in self.annotations if a["category_id"] not in known]
        kinds = sorted({a["category_id"] for a in self.annotations} - known.keys(), key=str)
        yield from self._found(
            "error", f"of category {first_of(kinds)}, which the file does not define", unknown,
            "define it or take them out: mmdet drops them",
        )  # fmt: skip
        used = Counter(known.get(a["category_id"]) for a in self.annotations)
        unused = [name for name in self.classes if name in known.values() and not used[name]]
        if unused:
            yield Issue(
                "warning", str(self.path), f"no annotation of {first_of(unused)}",
                "it can be neither learnt nor scored",
            )  # fmt: skip
        order = [c["name"] for c in self.categories if c["name"] in self.classes]
        if order != list(self.classes) and sorted(order) == sorted(self.classes):
            at = next(i for i, name in enumerate(order) if name != self.classes[i])
            yield Issue(
                "error", str(self.path),
                f"label {at} is {order[at]} by its categories' order, {self.classes[at]} by "
                "metainfo.classes",
                "mmdet numbers labels in the file's order: write metainfo.classes in that order",
            )  # fmt: skip

    def _check_boxes(self) -> Iterator[Issue]:
        malformed, empty, outside, beyond = [], [], [], []
        for annotation in self.annotations:
            box, image = annotation["bbox"], self._by_image.get(annotation["image_id"])
            if len(box) != 4 or not are_numbers(box):
                malformed.append(annotation["id"])
                continue
            x, y, w, h = box
            if w < 1 or h < 1 or annotation.get("area", w * h) <= 0:
                empty.append(annotation["id"])
            elif image is not None:
                width, height = image["width"], image["height"]
                if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                    outside.append(annotation["id"])
                # Rounding gives a pixel.
                elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                    beyond.append(annotation["id"])
        for severity, what, ids, advice in (
            ("error", "bbox is not four finite numbers", malformed, "write [x, y, width, height]"),
            ("warning", "box of no area, or thinner than a pixel", empty,
             "mmdet drops it; correct or delete it"),
            ("error", "box outside its image", outside,
             "mmdet drops it; is it [x, y, width, height] in pixels?"),
            ("warning", "box reaches beyond its image", beyond,
             "clip it; is it [x, y, width, height], not corners?"),
        ):  # fmt: skip
            yield from self._found(severity, what, ids, advice)

    def _check_masks(self) -> Iterator[Issue]:
        lacking, malformed, thin = [], [], []
        for annotation in self.annotations:
            mask = annotation.get("segmentation")
            image = self._by_image.get(annotation["image_id"])
            if not mask:
                lacking.append(annotation["id"])
            elif not (_is_code(mask, image) if isinstance(mask, dict) else _are_polygons(mask)):
                malformed.append(annotation["id"])
            elif isinstance(mask, list) and any(len(part) < 6 for part in mask):
                thin.append(annotation["id"])
        yield from self._found(
            "error", "no segmentation, but masks are trained", lacking,
            "add it, or train without masks (mask_head and with_mask)",
        )  # fmt: skip
        yield from self._found(
            "error", "segmentation is neither polygons nor run lengths of its image's size",
            malformed, "write [[x, y, x, y, ...], ...] or dict(size=[height, width], counts=...)",
        )  # fmt: skip
        yield from self._found(
            "warning", "polygon of fewer than three points", thin, "mmdet drops the mask: redraw it"
        )

    def check_sizes(self, folder: Path, headers: dict[Path, Header]) -> Iterator[Issue]:
        """Findings where the file's width and height are not those of the image."""
        turned, other = [], []
        for image in self.images:
            header = headers.get(folder / image["file_name"])
            said = (image["width"], image["height"])
            if header is None or said == header.upright:
                continue
            (turned if said == header.size else other).append((image, header))
        if turned:
            image, header = turned[0]
            yield Issue(
                "error", str(folder / image["file_name"]),
                f"EXIF turns it to {_by(header.upright)}, annotated as {_by(header.size)} "
                f"({len(turned)} of {len(headers)} images)",
                "boxes do not lie on what is seen: store it upright, without EXIF orientation",
            )  # fmt: skip
        if other:
            image, header = other[0]
            yield Issue(
                "error", str(self.path),
                f"{image['file_name']} is {image['width']}x{image['height']} here, the file "
                f"{_by(header.upright)} ({len(other)} of {len(headers)} images)",
                "were the images resized after annotation? scale the boxes or restore the images",
            )  # fmt: skip


def _are_polygons(mask: list) -> bool:
    return all(are_numbers(part) and len(part) % 2 == 0 for part in mask)


def _is_code(mask: dict, image: dict | None) -> bool:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(counts, str | list) or not are_numbers(size) or len(size) != 2:
        return False
    if isinstance(counts, list) and not (are_numbers(counts) and sum(counts) == size[0] * size[1]):
        return False
    return image is None or size == [image["height"], image["width"]]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
