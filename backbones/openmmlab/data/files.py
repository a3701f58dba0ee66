"""Select the files of a data set in a folder, and read text files in any common encoding."""

import codecs
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from backbones.errors import InputError

T = TypeVar("T")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif")
RASTERS = (".npy", ".dcm", ".jp2", ".img", ".vrt")  # images of other bands and depths
# What operating systems leave in folders and archives; names that begin with a dot are passed over
# as well, such as macOS's ._x.jpg beside x.jpg.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with UTF-16's, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_clutter(name: str) -> bool:
    """Return whether a file or folder of this name does not belong to the data set."""
    return name.startswith(".") or name.lower() in CLUTTER


def entries(folder: Path) -> list[Path]:
    """List what is directly in a folder, sorted, without clutter; nothing if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_clutter(path.name))


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """List the files directly in a folder that have one of these suffixes, in any case."""
    return [p for p in entries(folder) if p.suffix.lower() in suffixes and p.is_file()]


def folders_in(folder: Path) -> list[Path]:
    """List the folders directly in a folder, including links to folders."""
    return [path for path in entries(folder) if path.is_dir()]


def files_below(folder: Path, *suffixes: str, depth: int | None = None) -> list[Path]:
    """List the files below a folder that have one of these suffixes, in any case, sorted.

    Links are followed, but none to a folder that they lie in: a loop of links ends.

    Args:
        folder: where to start.
        suffixes: suffixes in lower case.
        depth: how many folders deep to look; None for all.
    """
    above = tuple(map(str, Path(os.path.realpath(folder)).parents))
    return sorted(_below(folder, suffixes, depth, above))


def _below(
    folder: Path, suffixes: tuple[str, ...], depth: int | None, above: tuple[str, ...]
) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    yield from files_in(folder, *suffixes)
    if depth != 0:
        for inner in folders_in(folder):
            yield from _below(inner, suffixes, None if depth is None else depth - 1, (*above, real))


@lru_cache(maxsize=64)
def _by_lower_name(folder: str, _changed: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        names.setdefault(name.lower(), name)
    return names


def find_file(path: Path) -> Path | None:
    """Find a file; accept a name that differs only in case."""
    if path.is_file():
        return path
    try:
        names = _by_lower_name(str(path.parent), path.parent.stat().st_mtime_ns)
    except OSError:
        return None
    name = names.get(path.name.lower())
    return path.with_name(name) if name and path.with_name(name).is_file() else None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Returns:
        The text, line ends as `\\n`.

    Raises:
        InputError: it is in another encoding, or cannot be read.
    """
    try:
        text = decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(
            f"{one_line(path)}: cannot be read ({error.strerror or error})",
            code="broken-file",
            where=path,
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_text(content: bytes, path: Path) -> str:
    """Decode a text file's content; see `read_text`.

    Raises:
        InputError: it is in another encoding.
    """
    encoding = next((e for mark, e in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:4]:  # UTF-16 without its mark
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{one_line(path)}: line {line} is not UTF-8 text (byte "
            f"{error.object[error.start]:#04x}); save the file as UTF-8",
            code="broken-file",
            where=path,
        ) from None


def one_line(text: object) -> str:
    """Escape line breaks, tabs and other control characters of a name for a message."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items, evenly spread; all of them if there are no more or `count` is 0."""
    if count == 0 or len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
