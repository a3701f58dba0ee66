"""Read saved reports: `report.json` of a work dir."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError

VERSION = 1
FILE = "report.json"


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """Read the report of a work dir, or a `report.json`.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"{file}: no such report; tools/train.py and tools/test.py write it",
            code="not-found",
            where=file,
        )
    try:
        report = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: not a report ({error})", code="broken-file", where=file
        ) from None
    if not isinstance(report, dict) or report.get("version") != VERSION:
        raise InputError(
            f"{file}: not a report of version {VERSION}; write it again with tools/test.py",
            code="broken-file",
            where=file,
        )
    return report


def read_earlier(work_dir: str | os.PathLike) -> dict[str, Any]:
    """Read the report that a work dir already holds; empty if none can be read."""
    try:
        return read_report(Path(work_dir) / FILE)
    except InputError:
        return {}


def named_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """Name runs by their folder, or by as much of its path as distinguishes them.

    Args:
        paths: work dirs, or their `report.json`.

    Raises:
        InputError: two of them are the same.
    """
    folders = [(path if path.is_dir() else path.parent).absolute() for path in paths]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    twice = next(
        path for path, folder in zip(paths, folders, strict=True) if folders.count(folder) > 1
    )
    raise InputError(f"{twice}: the same run is given twice", code="bad-argument", where=twice)


def jsonable(value: Any) -> Any:
    """Return the value in JSON types: plain numbers for NumPy's, None for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
