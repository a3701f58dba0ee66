"""Find the split that the words of a path name."""

import re
from pathlib import Path

SPLITS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}


def split_of(path: Path) -> str | None:
    """Return train, val or test if a word of a relative path names it; else None."""
    words = set(re.split(r"[^a-z]+", path.as_posix().lower()))
    found = [split for split, names in SPLITS.items() if words & names]
    return found[-1] if found else None
