"""Faults in a COCO annotation file that mmdet drops, repairs or trips over without a word."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbones.errors import InputError

from .findings import Finding, first_of
from .image_files import Header


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
        try:
            content = json.loads(path.read_bytes())
            self.images, self.annotations, self.categories = (
                content[key] for key in ("images", "annotations", "categories")
            )
            self._by_image = {image["id"]: image for image in self.images}
            for each in self.images:
                each["file_name"], each["width"], each["height"]
            for each in self.annotations:
                each["id"], each["image_id"], each["category_id"], each["bbox"]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not COCO's format ({error})") from None
        except KeyError as error:
            raise InputError(f"{path}: not COCO's format, no {error} in it") from None

    def names(self) -> list[str]:
        """File names of the images."""
        return [image["file_name"] for image in self.images]

    def check(self, with_mask: bool) -> Iterator[Finding]:
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
    ) -> Iterator[Finding]:
        if ids:
            text = f"{name} {'id ' * (name != 'image file')}{first_of(ids)}: {what}"
            if len(ids) > 3:
                text = f"{len(ids)} {name}s, first {', '.join(map(str, ids[:3]))}: {what}"
            yield Finding(severity, str(self.path), text, advice)

    def _check_ids(self) -> Iterator[Finding]:
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

    def _check_categories(self) -> Iterator[Finding]:
        known = {category["id"]: category["name"] for category in self.categories}
        repeated = [
            n for n, count in Counter(c["id"] for c in self.categories).items() if count > 1
        ]
        yield from self._found(
            "error", "several have this id", repeated, "give each its own", "category"
        )
        unknown = [a["id"] for a in self.annotations if a["category_id"] not in known]
        kinds = sorted({a["category_id"] for a in self.annotations} - known.keys())
        yield from self._found(
            "error", f"of category {first_of(kinds)}, which the file does not define", unknown,
            "define it or take them out: mmdet drops them",
        )  # fmt: skip
        used = Counter(known.get(a["category_id"]) for a in self.annotations)
        unused = [name for name in self.classes if name in known.values() and not used[name]]
        if unused:
            yield Finding(
                "warning", str(self.path), f"no annotation of {first_of(unused)}",
                "it can be neither learnt nor scored",
            )  # fmt: skip
        order = [c["name"] for c in self.categories if c["name"] in self.classes]
        if order != list(self.classes) and sorted(order) == sorted(self.classes):
            at = next(i for i, name in enumerate(order) if name != self.classes[i])
            yield Finding(
                "error", str(self.path),
                f"label {at} is {order[at]} by its categories' order, {self.classes[at]} by "
                "metainfo.classes",
                "mmdet numbers labels in the file's order: write metainfo.classes in that order",
            )  # fmt: skip

    def _check_boxes(self) -> Iterator[Finding]:
        malformed, empty, outside, beyond = [], [], [], []
        for annotation in self.annotations:
            box, image = annotation["bbox"], self._by_image.get(annotation["image_id"])
            if (
                not isinstance(box, list)
                or len(box) != 4
                or not all(isinstance(x, int | float) and math.isfinite(x) for x in box)
            ):
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

    def _check_masks(self) -> Iterator[Finding]:
        lacking, thin = [], []
        for annotation in self.annotations:
            mask = annotation.get("segmentation")
            if not mask:
                lacking.append(annotation["id"])
            elif isinstance(mask, list) and any(len(part) < 6 or len(part) % 2 for part in mask):
                thin.append(annotation["id"])
        yield from self._found(
            "error", "no segmentation, but masks are trained", lacking,
            "add it, or train without masks (mask_head and with_mask)",
        )  # fmt: skip
        yield from self._found(
            "warning", "polygon of fewer than three points", thin, "mmdet drops the mask: redraw it"
        )

    def check_sizes(self, folder: Path, headers: dict[Path, Header]) -> Iterator[Finding]:
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
            yield Finding(
                "error", str(folder / image["file_name"]),
                f"EXIF turns it to {_by(header.upright)}, annotated as {_by(header.size)} "
                f"({len(turned)} of {len(headers)} images)",
                "boxes do not lie on what is seen: store it upright, without EXIF orientation",
            )  # fmt: skip
        if other:
            image, header = other[0]
            yield Finding(
                "error", str(self.path),
                f"{image['file_name']} is {image['width']}x{image['height']} here, the file "
                f"{_by(header.upright)} ({len(other)} of {len(headers)} images)",
                "were the images resized after annotation? scale the boxes or restore the images",
            )  # fmt: skip


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
