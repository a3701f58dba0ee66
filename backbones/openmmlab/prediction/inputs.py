"""List the images and videos that a command line names."""

from glob import glob, has_magic
from pathlib import Path

from backbones.errors import InputError
from backbones.openmmlab.data.files import IMAGES, RASTERS, files_in, is_clutter
from backbones.weights import is_weights

VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}


def split_checkpoint(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split a command line, `[CHECKPOINT] PATH ...`, into its checkpoint and its paths.

    Raises:
        InputError: a checkpoint is given, but nothing to predict.
    """
    first, *rest = arguments
    is_image = Path(first).suffix.lower() in {*IMAGES, *RASTERS, *VIDEOS} or has_magic(first)
    if not is_weights(first) and (is_image or Path(first).is_dir() or not rest):
        return None, arguments
    if not rest:
        raise InputError(f"{first}: is a checkpoint; name images or videos after it", where=first)
    return first, rest


def find_files(arguments: list[str]) -> list[Path]:
    """Return the named files, those directly in named folders and those that patterns match.

    Raises:
        InputError: a path does not exist, or a folder or pattern holds no image or video.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += _in_folder(path)
        elif path.is_file():
            found.append(path)
        elif has_magic(argument):
            matches = [Path(match) for match in sorted(glob(argument, recursive=True))]
            matches = [
                m
                for m in matches
                if m.suffix.lower() in {*IMAGES, *RASTERS, *VIDEOS} and m.is_file()
            ]
            matches = [m for m in matches if not is_clutter(m.name)]
            if not matches:
                raise InputError(
                    f"{argument}: matches no image or video", code="not-found", where=argument
                )
            found += matches
        else:
            raise InputError(
                f"{path}: no such image, video or folder", code="not-found", where=path
            )
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[Path]:
    inside = files_in(folder, *IMAGES, *RASTERS, *VIDEOS)
    if not inside:
        raise InputError(
            f"{folder}: no images or videos in this folder", code="not-found", where=folder
        )
    return inside


def output_names(paths: list[Path]) -> list[str]:
    """Name each file's predictions: after the file, numbered if several share a name."""
    names: dict[str, None] = {}
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}"
        names[name] = None
    return list(names)
