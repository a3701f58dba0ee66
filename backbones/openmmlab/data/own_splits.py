"""Determine which splits one's own data has and needs, and log them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError

from .files import one_line

DETECTION = "COCO, YOLO or Pascal VOC annotations"
SEGMENTATION = "folders of images and of label maps in PNG"


def no_layout(root: Path, wanted: str) -> InputError:
    """Return the error about a folder that holds no known data."""
    return InputError(
        f"{one_line(root)}: contains no {wanted}; docs/own-data.md describes the layouts",
        code="no-data",
        where=root,
    )


def other_task(config: Config, root: Path, found: str, model: str, wanted: str) -> InputError:
    """Return the error about data of another task than the config's."""
    return InputError(
        f"{one_line(root)}: holds {found}, but {config.filename} is {model} and needs {wanted}",
        code="no-data",
        where=root,
    )


def take_unsplit(read: dict[str | None, Any], splits: Sequence[str]) -> Any:
    """Return the data to split validation from, and drop unsplit data; None if not needed.

    Args:
        read: the data by split; under None data that is not split.
        splits: splits that the run needs.
    """
    if None in read:
        return read.pop(None)
    if "val" in read or (tuple(splits) == ("test",) and "test" in read):
        return None
    return read.get("train")


def require(read: Mapping[str | None, Any], splits: Sequence[str], root: Path) -> None:
    """Check that every split that the run needs exists; validation stands in for test.

    Raises:
        InputError: one is not.
    """
    for split in splits:
        if split not in read and (split == "train" or "val" not in read):
            found = ", ".join(sorted(str(name) for name in read))
            raise InputError(
                f"{one_line(root)}: has no {split} split, only {found}",
                code="no-data",
                where=root,
            )


def log_reading(root: Path, kind: str, names: Sequence[str], splits: list[tuple]) -> None:
    """Log what was read.

    Args:
        root: folder of the data set.
        kind: kind of the annotations, or the rule of the label maps.
        names: names of the classes.
        splits: split, source, number of images and what else there is, of each.
    """
    shown = ", ".join(map(one_line, names[:8])) + (", ..." if len(names) > 8 else "")
    print_log(f"{one_line(root)}: {kind}; {len(names)} classes: {shown}", "current")
    for split, source, images, what in splits:
        counted = f"{images} images, {what}" if what[0].isdigit() else f"{images} {what}"
        print_log(f"  {split}: {counted}, {one_line(source)}", "current")
