"""Write files atomically: a file appears complete under its name, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

from .errors import Code, InputError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is flushed to disk and renamed at the end.

    A kill, a full disk or an exception at any moment leaves the former file at `path` as it was.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        InputError: the file cannot be written; no partial file is left.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)  # the new name must survive a power cut too
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            code: Code = "no-space" if error.errno == ENOSPC else "write-failed"
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error})", code=code, where=path
            ) from error
        raise


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a small file; see `atomic_path`."""
    with atomic_path(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
