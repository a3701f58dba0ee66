"""Find faults in a COCO annotation file that mmdet drops, repairs or fails on silently."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from backbones.errors import Code

from .coco_file import ROWS, check_rows, read_coco
from .coco_ids import is_sound, what_ids_are
from .decoding import Header
from .files import one_line
from .issues import Issue, first_of
from .masks import are_numbers, mask_fault

REREAD = "pass its folder as --data, which repairs it when reading"


class CocoAnnotations:
    """Hold a COCO annotation file of a config, read whole.

    Args:
        path: the file.
        classes: the config's, in the order of their labels.

    Attributes:
        images, annotations, categories: its rows, of the kinds that COCO's format has.

    Raises:
        InputError: it is not JSON, or lacks a list that COCO's format has.
    """

    def __init__(self, path: Path, classes: Sequence[str]):
        self.path, self.classes = path, classes
        content, self.is_utf8 = read_coco(path)
        check_rows(content, path)
        self.images, self.annotations, self.categories = (content[key] for key in ROWS)
        self._by_image = {image["id"]: image for image in self.images}

    def names(self) -> list[str]:
        """Return the file names of the images."""
        return [image["file_name"] for image in self.images]

    def check(self, with_mask: bool) -> Iterator[Issue]:
        """Check the file without its images.

        Args:
            with_mask: masks are trained or scored.
        """
        if not self.is_utf8:
            yield Issue(
                "error", one_line(self.path), "has a byte order mark or is not UTF-8",
                f"COCO's tools cannot read it: save it as plain UTF-8, or {REREAD}", "broken-file",
            )  # fmt: skip
        yield from self._check_ids()
        yield from self._check_categories()
        yield from self._check_boxes()
        if with_mask:
            yield from self._check_masks()

    def _found(
        self, severity: str, what: str, ids: Sequence[object], advice: str, name: str = "annotation"
    ) -> Iterator[Issue]:
        if ids:
            shown = [one_line(each) for each in ids]
            text = f"{name} {'id ' * (name != 'image file')}{first_of(shown)}: {what}"
            if len(ids) > 3:
                text = f"{len(ids)} {name}s, first {', '.join(shown[:3])}: {what}"
            yield self._issue(severity, text, advice)

    def _issue(
        self, severity: str, text: str, advice: str, code: Code = "bad-annotations"
    ) -> Issue:
        return Issue(severity, one_line(self.path), text, advice, code)

    def _check_ids(self) -> Iterator[Issue]:
        for part, rows in (
            ("images", self.images),
            ("annotations", self.annotations),
            ("categories", self.categories),
        ):
            ids = [row["id"] for row in rows]
            wrong = [value for value in ids if not is_sound(value, part)]
            if wrong:
                yield self._issue(
                    "error",
                    f"{what_ids_are(wrong, part)}: COCO's evaluation scores them wrongly or fails",
                    f"number them from 1, or {REREAD}",
                )
            repeated = [each for each, count in Counter(ids).items() if count > 1]
            yield from self._found(
                "error", "several share this id; all but one are lost", repeated,
                f"renumber them, or {REREAD}",
                dict(images="image", annotations="annotation", categories="category")[part],
            )  # fmt: skip
        files = Counter(self.names())
        repeated = [name for name, count in files.items() if count > 1]
        yield from self._found(
            "warning", "listed more than once", repeated, "keep one entry", "image file"
        )
        orphans = [a["id"] for a in self.annotations if a["image_id"] not in self._by_image]
        yield from self._found(
            "error", "their image is not in the file", orphans, "add the image or remove them"
        )

    def _check_categories(self) -> Iterator[Issue]:
        known = {category["id"]: category["name"] for category in self.categories}
        unknown = [a["id"] for a in self.annotations if a["category_id"] not in known]
        kinds = sorted({a["category_id"] for a in self.annotations} - known.keys(), key=str)
        kinds = [one_line(repr(kind)) for kind in kinds]
        yield from self._found(
            "error", f"of category {first_of(kinds)}, which the file does not define", unknown,
            "define it or remove them; mmdet drops them",
        )  # fmt: skip
        used = Counter(known.get(a["category_id"]) for a in self.annotations)
        unused = [name for name in self.classes if name in known.values() and not used[name]]
        if unused:
            yield self._issue(
                "warning",
                f"no annotation of {first_of([one_line(name) for name in unused])}",
                "it can be neither trained nor scored",
            )
        order = [c["name"] for c in self.categories if c["name"] in self.classes]
        if order != list(self.classes) and sorted(order) == sorted(self.classes):
            at = next(i for i, name in enumerate(order) if name != self.classes[i])
            yield self._issue(
                "error",
                f"label {at} is {one_line(order[at])} by its categories' order, "
                f"{one_line(self.classes[at])} by metainfo.classes",
                "mmdet numbers labels in the file's order: write metainfo.classes in that order",
                "class-mismatch",
            )

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
            ("warning", "box with no area, or thinner than a pixel", empty,
             "mmdet drops it; correct or delete it"),
            ("warning", "box outside its image", outside,
             "mmdet drops it; is it [x, y, width, height] in pixels?"),
            ("warning", "box reaches beyond its image", beyond,
             "clip it; is it [x, y, width, height], not corners?"),
        ):  # fmt: skip
            yield from self._found(severity, what, ids, advice)

    def _check_masks(self) -> Iterator[Issue]:
        lacking, faults = [], {}
        for annotation in self.annotations:
            mask = annotation.get("segmentation")
            image = self._by_image.get(annotation["image_id"])
            size = (image["height"], image["width"]) if image else None
            if not mask or mask == [[]]:
                lacking.append(annotation["id"])
            elif fault := mask_fault(mask, size):
                faults[annotation["id"]] = fault
        yield from self._found(
            "error", "no segmentation, but masks are trained or scored", lacking,
            "add it, or train without masks (mask_head and with_mask)",
        )  # fmt: skip
        if faults:
            first, fault = next(iter(faults.items()))
            more = f" (and {len(faults) - 1} more masks)" if len(faults) > 1 else ""
            yield self._issue(
                "error",
                f"annotation id {one_line(first)}: segmentation: {one_line(fault)}{more}",
                f"correct it, or {REREAD} if possible",
            )

    def check_sizes(self, folder: Path, headers: Mapping[Path, Header]) -> Iterator[Issue]:
        """Check the file's width and height against those of the decoded images.

        Args:
            folder: folder that the images' names are relative to.
            headers: headers of some or all images.
        """
        turned, other = [], []
        for image in self.images:
            header = headers.get(folder / image["file_name"])
            stated = (image["width"], image["height"])
            if header is None or stated == header.upright:
                continue
            (turned if stated == header.size else other).append((image, header))
        if turned:
            image, header = turned[0]
            yield Issue(
                "error", one_line(folder / image["file_name"]),
                f"EXIF rotates it to {_by(header.upright)}, annotated as {_by(header.size)} "
                f"({len(turned)} of {len(headers)} images)",
                "boxes do not match the rotated image: store it upright, without EXIF orientation",
                "bad-annotations",
            )  # fmt: skip
        if other:
            image, header = other[0]
            swapped = header.upright == (image["height"], image["width"])
            yield self._issue(
                "error",
                f"{one_line(image['file_name'])} is {image['width']}x{image['height']} here, the "
                f"file {_by(header.upright)}{' (width and height are swapped)' * swapped} "
                f"({len(other)} of {len(headers)} images)",
                "correct width and height here" if swapped
                else "were the images resized after annotation? scale the boxes or restore them",
            )  # fmt: skip


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
