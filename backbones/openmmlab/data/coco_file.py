"""Read COCO annotation files, in part or whole, with every row checked.

Every part is found by parsing, never by looking for a word: a file may have the word "categories"
in its info, or in an attribute of an object. What is asked early of a file of 450 MB is read row by
row from the disk and keeps nothing but that; where all rows are wanted the file is parsed at once.
"""

import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from backbones.errors import InputError

from .files import decode_text, one_line
from .masks import LARGEST

PIECE = 2**20  # characters read at once
BLANK = re.compile(r"[ \t\n\r]*")
NUMBER = "0123456789+-.eE"
PARTS = ("images", "annotations", "categories")

# What the rows of a COCO file hold, and what each may be.
ROWS: dict[str, dict[str, Any]] = {
    "images": dict(id=(int, str), file_name=str, width=int, height=int),
    "annotations": dict(id=(int, str), image_id=(int, str), category_id=(int, str), bbox=list),
    "categories": dict(id=(int, str), name=str),
}
OPTIONAL = dict(area=float, iscrowd=int, segmentation=(list, dict, type(None)))


class _Pieces:
    """Read a text file piece by piece, and forget what has been parsed."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("rb")
        encoding = json.detect_encoding(self.file.read(4))
        self.file.seek(0)
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.text, self.at, self.ended = "", 0, False
        self.parser = json.JSONDecoder()

    def more(self) -> bool:
        """Read the next piece; return False at the end of the file."""
        if self.ended:
            return False
        content = self.file.read(max(PIECE, len(self.text) - self.at))
        self.ended = not content
        self.text = self.text[self.at :] + self.decoder.decode(content, self.ended)
        self.at = 0
        return True

    def peek(self) -> str:
        """Return the next character that is not blank; an empty string at the end."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """Consume one of these characters.

        Raises:
            ValueError: another follows, or none.
        """
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(
                f"{found!r} instead of {' or '.join(expected)}" if found else "cut off"
            )
        self.at += 1
        return found

    def value(self) -> Any:
        """Parse the next value.

        Raises:
            ValueError: there is no whole one.
        """
        self.peek()
        while True:
            try:
                value, end = self.parser.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self.more():
                    raise ValueError(f"cut off or not JSON: {error.msg}") from None
                continue
            # A number may go on, and "1." begins with a whole one.
            if self.text[end : end + 1] in NUMBER and self.more():
                continue
            self.at = end
            return value


def stream(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Read the rows of a JSON file's top-level lists one after the other, in constant memory.

    Yields:
        Key, number of the row and the row; a value that is no list as one row numbered -1, the end
        of a list as None numbered -1.

    Raises:
        InputError: it is cut off, or not a JSON file with a dict.
    """
    try:
        yield from _stream(path)
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"not UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(path, (str(error) or type(error).__name__).splitlines()[0]) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def _stream(path: Path) -> Iterator[tuple[str, int, Any]]:
    pieces = _Pieces(path)
    with pieces.file:
        pieces.take("{")
        if pieces.peek() == "}":
            return
        while True:
            key = pieces.value()
            if not isinstance(key, str):
                raise ValueError("a key that is not a string")
            pieces.take(":")
            if pieces.peek() != "[":
                yield key, -1, pieces.value()
            else:
                pieces.take("[")
                number = 0
                more = pieces.peek() != "]"
                while more:
                    yield key, number, pieces.value()
                    number += 1
                    more = pieces.take(",]") == ","
                if number == 0:
                    pieces.take("]")
                yield key, -1, None
            if pieces.take(",}") == "}":
                break
        if pieces.peek():
            raise ValueError("data after its end")


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"{one_line(path)}: cannot be read as JSON ({one_line(reason)})",
        code="broken-file",
        where=path,
    )


def is_coco(path: Path) -> bool:
    """Return whether a JSON file holds images and categories as COCO files do.

    A file that breaks off after it has shown one of these lists is COCO's too: `read_coco` says
    what is wrong with it.

    Raises:
        InputError: it cannot be read and has not shown what it is.
    """
    return _is_coco(path, *_state(path))


@lru_cache(maxsize=256)
def _is_coco(path: Path, *state: int) -> bool:
    seen: set[str] = set()
    try:
        for key, number, row in stream(path):
            is_row = number == 0 and isinstance(row, dict)
            if key in PARTS and (is_row or (number == -1 and row is None)):
                seen.add(key)
            if key == "annotations" and number == 0 and "segments_info" in (row or ()):
                return False  # panoptic
            if len(seen) == len(PARTS):
                return True
    except InputError:
        if seen & {"images", "annotations"}:
            return True
        raise
    return {"images", "categories"} <= seen


def has_objects(path: Path) -> bool:
    """Return whether a COCO file lists at least one annotation.

    Raises:
        InputError: it is cut off before its first, or not JSON.
    """
    return any(key == "annotations" and number == 0 for key, number, _ in stream(path))


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


def read_categories(path: Path) -> list[str]:
    """Read the names of a COCO file's categories in their order, and nothing after them.

    Raises:
        InputError: the file is missing, empty, cut off or has no categories.
    """
    return list(_read_categories(path, *_state(path)))


@lru_cache(maxsize=256)
def _read_categories(path: Path, *state: int) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f"{one_line(path)}: no such annotation file", code="not-found", where=path)
    if path.stat().st_size == 0:
        raise InputError(
            f"{one_line(path)}: the annotation file is empty", code="broken-file", where=path
        )
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip(b" \t\r\n\0").endswith(b"}"):
            raise InputError(
                f"{one_line(path)}: the annotation file is cut off; copy or download it again",
                code="broken-file",
                where=path,
            )
    names = []
    for key, number, row in stream(path):
        if key == "categories":
            if number == -1:
                break
            if not isinstance(row, dict) or not isinstance(row.get("name"), str):
                raise _not_coco(path, f"categories[{number}] has no name")
            names.append(row["name"])
        elif names:
            break
    if not names:
        raise _not_coco(path, "it has no categories")
    return tuple(names)


def read_coco(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a COCO file whole.

    Returns:
        Its content, and whether COCO's own tools can read it too: they know UTF-8 alone.

    Raises:
        InputError: it is not JSON, or nested without end.
    """
    try:
        content = path.read_bytes()
        encoding = json.detect_encoding(content[:4])
        text = decode_text(content, path) if encoding == "utf-8" else content.decode(encoding)
        del content
        return json.loads(text), encoding == "utf-8"
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error).splitlines()[0]
        raise _unreadable(path, f"cut off or not JSON: {reason}") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def _not_coco(path: Path, reason: str) -> InputError:
    return InputError(
        f"{one_line(path)}: not COCO's format, {one_line(reason)}",
        code="bad-annotations",
        where=path,
    )


def check_rows(content: object, path: Path, own: bool = False) -> None:
    """Reject content that is not in COCO's format, at the first invalid row.

    Args:
        content: content of the file.
        path: the file.
        own: it is to be completed: images need no width and height, objects no id, and a box or a
            mask will do.

    Raises:
        InputError: a list, a row or a value of it is missing or of another kind.
    """
    for name, kinds in ROWS.items():
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise _not_coco(path, f"no list {name!r} in it")
        spared = {"images": {"width", "height"}, "annotations": {"id", "bbox"}} if own else {}
        needed = kinds.keys() - spared.get(name, set())
        if name == "annotations":
            kinds = kinds | OPTIONAL
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise _not_coco(path, f"{name}[{number}] is not a dict")
            for key, kind in kinds.items():
                if key not in row:
                    if key in needed:
                        raise _not_coco(path, f"no {key!r} in {name}[{number}]")
                elif not _is(row[key], kind) and not (own and key not in needed and not row[key]):
                    raise _not_coco(path, f"{key} of {name}[{number}] is {row[key]!r:.40}")
            if name == "images" and min(row.get("width") or 1, row.get("height") or 1) < 1:
                raise _not_coco(path, f"{name}[{number}] has a width or height below 1")


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    if type(value) is kind and kind is not float and kind is not int:
        return True
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if int in kinds or float in kinds:  # JSON of other languages has 3.0 and false for them
        largest = 2**63 if str in kinds else LARGEST
        if isinstance(value, int | float) and abs(value) < largest:
            if float in kinds or value == int(value):
                return True
        kinds = tuple(k for k in kinds if k not in (int, float))
    return isinstance(value, kinds)
