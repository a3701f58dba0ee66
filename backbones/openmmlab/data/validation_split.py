"""Make a validation split where the data has none."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from backbones.checksums import sha256_of
from backbones.errors import InputError

from .converted import below, write
from .files import one_line

VALIDATION_SHARE = 0.2
SEED = 0
HEAD = 2**16  # bytes that tell most images apart


def choose_validation(paths: Iterable[Path], root: Path, folder: Path) -> set[Path]:
    """Choose a fifth of the images, always the same ones, and list both sides in split.json.

    Copies of an image stay together, and so do Roboflow's augmentations of one (x.rf.HASH.jpg). A
    group's place in the draw depends on its name alone, so that more images move few others.

    Args:
        paths: all images.
        root: folder of the data set.
        folder: where split.json is written.

    Raises:
        InputError: all images are one.
    """
    paths = sorted(set(paths))
    members = _groups(paths)
    if len(members) < 2:
        raise InputError(
            f"{one_line(root)}: {len(paths)} images are too few to set some aside for validation",
            code="no-data",
            where=root,
        )

    def rank(group: Path) -> bytes:
        return hashlib.sha256(f"{SEED} {below(group, root)}".encode()).digest()

    order = sorted(members, key=rank)
    chosen: set[Path] = set()
    for group in order[:-1]:
        if len(chosen) >= VALIDATION_SHARE * len(paths):
            break
        chosen.update(members[group])
    path = folder / "split.json"
    record: dict[str, Any] = dict(root=str(root), seed=SEED, share=VALIDATION_SHARE)
    for split in ("train", "val"):
        record[split] = [below(p, root) for p in paths if (p in chosen) == (split == "val")]
    write(path, json.dumps(record, indent=1))
    print_log(
        f"{one_line(root)}: no validation split: {len(chosen)} of {len(paths)} images set aside by "
        f"seed {SEED}, listed in {one_line(path)}",
        "current",
    )
    return chosen


def _groups(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Group images that are copies or were made from the same original; key by the first."""
    leader = {path: path for path in paths}

    def first(path: Path) -> Path:
        while leader[path] != path:
            path = leader[path]
        return path

    seen: dict[Any, Path] = {}
    contents = _contents(paths)
    for path in paths:
        source = path.parent, path.name.split(".rf.")[0]
        keys = (contents[path], source) if ".rf." in path.name else (contents[path],)
        for key in keys:
            leader[first(path)] = first(seen.setdefault(key, path))
    members: dict[Path, list[Path]] = {}
    for path in paths:
        members.setdefault(first(path), []).append(path)
    return members


def _contents(paths: Sequence[Path]) -> dict[Path, Any]:
    """Give files a key that those of equal content share.

    Only files that agree in size and beginning are read whole: frames of one camera in BMP agree in
    both.
    """
    keys: dict[Path, Any] = {}
    alike: dict[Any, list[Path]] = {}
    for path in paths:
        with path.open("rb") as file:
            keys[path] = hashlib.sha256(file.read(HEAD)).digest(), path.stat().st_size
        alike.setdefault(keys[path], []).append(path)
    for (_, size), group in alike.items():
        for path in group if len(group) > 1 and size > HEAD else ():
            keys[path] = sha256_of(path), size
    return keys
