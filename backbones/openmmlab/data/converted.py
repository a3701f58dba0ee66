"""Store files converted from users' data in the work dir, by the data's folder."""

import hashlib
import os
from pathlib import Path


def folder_for(work_dir: Path, root: Path) -> Path:
    """Return the work dir's folder for this data, so that other data's files are kept."""
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    return work_dir.resolve() / "data" / f"{root.name}-{digest}"


def write(path: Path, text: str) -> None:
    """Write a file atomically; several ranks of a run may write the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def below(path: Path, root: Path) -> str:
    """Return a path relative to the data's folder; the whole path if it lies elsewhere."""
    if not path.is_relative_to(root):
        return str(path)
    return "" if path == root else path.relative_to(root).as_posix()
