"""Check and repair the ids of images, objects and categories in COCO files.

COCO's evaluation uses an object's id as the flag of a matched detection: ids that are strings or 0
silently count as misses. An id is valid if it is an integer (from 1 for
objects, from 0 for images and categories), and nothing else has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones.errors import InputError

from .files import one_line

# Beyond it floating-point numbers no longer distinguish integers.
LARGEST_ID = 2**53
LEAST = dict(images=0, annotations=1, categories=0)
NAMES = dict(images="image", annotations="annotation", categories="category")


def is_sound(value: object, part: str) -> bool:
    """Return whether a row of this part of a COCO file may have this id."""
    return type(value) is int and LEAST[part] <= value < LARGEST_ID


def what_ids_are(values: list, part: str) -> str:
    """Describe invalid ids, with the first example of each kind."""
    kinds = {
        "missing": [v for v in values if v is None],
        "text": [v for v in values if isinstance(v, str)],
        "0": [v for v in values if type(v) is int and v == 0],
        "below 0": [v for v in values if type(v) is int and v < 0],
        "beyond 2^53": [v for v in values if type(v) is int and v >= LARGEST_ID],
        "not integers": [v for v in values if isinstance(v, bool | float)],
    }
    shown = [
        kind if kind in ("missing", "0") else f"{kind} ({one_line(repr(of[0]))[:40]})"
        for kind, of in kinds.items()
        if of
    ]
    return f"{NAMES[part]} ids are {' and '.join(shown)}"


def number_anew(content: dict[str, Any], path: Path) -> list[str]:
    """Give every row of a COCO file a valid id, and update every reference to it.

    Rows with ids that are sound keep them. An image or a category that is listed twice is kept
    once. An image_id or category_id in another kind than the id it means (the text "7" for 7) finds
    it.

    Args:
        content: rows checked by `check_rows`; changed in place.
        path: the file.

    Returns:
        A line for each thing that was changed.

    Raises:
        InputError: one id is two images' or two categories', or an object is of none in the file.
    """
    lines: list[str] = []
    image_ids = _number_rows(content, "images", "file_name", path, lines)
    category_ids = _number_rows(content, "categories", "name", path, lines)
    rows = content["annotations"]
    changed = {key: 0 for key in ("image_id", "category_id")}
    known = dict(
        image_id=(image_ids, _by_text(image_ids)),
        category_id=(category_ids, _by_text(category_ids)),
    )
    for number, row in enumerate(rows):
        for key, (ids, texts) in known.items():
            meant = row[key]
            if meant not in ids:
                if str(meant) not in texts:
                    raise _astray(path, number, row, key)
                meant = texts[str(meant)]
                changed[key] += 1
            row[key] = ids[meant]
    for key, count in changed.items():
        if count:
            lines.append(f"{key} of {count} objects has another type than the id it refers to")
    ids = [row.get("id") for row in rows]
    wrong = [value for value in ids if not is_sound(value, "annotations")]
    if wrong or len(set(ids)) < len(ids):
        what = what_ids_are(wrong, "annotations") if wrong else "annotation ids are not unique"
        lines.append(f"{what}: renumbered from 1")
        for number, row in enumerate(rows, start=1):
            row["id"] = number
    return lines


def _number_rows(
    content: dict[str, Any], part: str, name: str, path: Path, lines: list[str]
) -> dict[Any, int]:
    """Drop rows that are listed twice and number the others; return the new id of every old one."""
    first: dict[Any, dict] = {}
    for row in content[part]:
        other = first.setdefault(row["id"], row)
        if other[name] != row[name]:
            raise InputError(
                f"{one_line(path)}: {NAMES[part]} id {row['id']} is both {one_line(other[name])} "
                f"and {one_line(row[name])}; give each its own",
                code="bad-annotations",
                where=path,
            )
    if len(first) < len(content[part]):
        count = len(content[part]) - len(first)
        lines.append(f"{count} {part} are listed more than once: kept once")
        content[part] = list(first.values())
    wrong = [value for value in first if not is_sound(value, part)]
    if not wrong:
        return {value: value for value in first}
    lines.append(f"{what_ids_are(wrong, part)}: renumbered from 1")
    renumbered = {value: number for number, value in enumerate(first, start=1)}
    for value, row in first.items():
        row["id"] = renumbered[value]
    return renumbered


def _by_text(ids: Mapping[Any, int]) -> dict[str, Any]:
    """Map ids by their text where it is unambiguous."""
    texts: dict[str, list] = {}
    for value in ids:
        texts.setdefault(str(value), []).append(value)
    return {text: values[0] for text, values in texts.items() if len(values) == 1}


def _astray(path: Path, number: int, row: dict, key: str) -> InputError:
    part = "image" if key == "image_id" else "category"
    label = f"annotation {one_line(row['id'])}" if row.get("id") is not None else ""
    return InputError(
        f"{one_line(path)}: annotations[{number}]{f' ({label})' if label else ''}: {key} "
        f"{one_line(repr(row[key]))[:40]} is the id of no {part} in the file",
        code="bad-annotations",
        where=path,
    )
