"""Hold what every format is read into: the content of a COCO annotation file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.openmmlab.data.files import one_line
from backbones.openmmlab.data.masks import area_of

Found = dict[str | None, list[Path]]


@dataclass
class Annotations:
    """Hold one split's images and objects.

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


def coco_content(
    classes: Sequence[str], images: Iterator[tuple[str, tuple[int, int], list]]
) -> dict[str, Any]:
    """Build a COCO file's content.

    Args:
        classes: names in the order of their labels.
        images: name, (width, height) and objects of each; an object is (label, (x1, y1, x2, y2),
            mask or None, whether it is a crowd).
    """
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
            if mask is not None:
                area = area_of(mask, (height, width))
            row = dict(
                id=next(ids),
                image_id=image_id,
                category_id=label + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=area,
                iscrowd=int(crowd),
            )
            if isinstance(mask, dict):
                mask = dict(size=mask["size"], counts=mask["counts"].decode())
            if mask is not None:
                row["segmentation"] = mask
            content["annotations"].append(row)
    return content


def relative_name(image: Path, root: Path) -> str:
    """Return an image's path relative to the data set's folder, or its whole path if outside."""
    return str(image.relative_to(root) if image.is_relative_to(root) else image)


def bad_row(path: Path, what: str) -> InputError:
    """Return the error about a row or line of an annotation file."""
    return InputError(f"{one_line(path)}: {what}", code="bad-annotations", where=path)


def supervision_readers() -> tuple[Any, Any]:
    """Return supervision's modules for YOLO and Pascal VOC.

    Raises:
        InputError: supervision is not installed.
    """
    try:
        import supervision.dataset.formats.pascal_voc as voc
        import supervision.dataset.formats.yolo as yolo
    except ImportError:
        raise InputError(
            "YOLO and Pascal VOC are read through supervision, which is not installed: "
            "pip install 'convnext-dense-prediction[convert]'",
            code="missing-package",
            where="supervision",
        ) from None
    return yolo, voc
