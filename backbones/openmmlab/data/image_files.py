"""What is in image files: size, channels, depth, orientation, wholeness, and the picture."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from backbones.errors import UnreadableImage

from .issues import Issue, first_of

ORIENTATION = 0x0112  # EXIF tag
DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
# Suffixes of images that Pillow knows with a plugin only, or a newer release.
NEWER_IMAGES = (".avif", ".heic", ".heif", ".jxl")
# How far a recipe's scale may be from the images' own before details are lost or made up.
LARGEST_ENLARGEMENT = 2.0
LARGEST_REDUCTION = 4.0


class Header(NamedTuple):
    """What a file says of its image.

    Attributes:
        size: (width, height) as stored; `upright` is as OpenCV reads it, rotated by EXIF.
        mode: PIL's name of channels and depth.
        rotated: EXIF says to rotate or mirror.
    """

    size: tuple[int, int]
    upright: tuple[int, int]
    mode: str
    rotated: bool
    transparent: bool


def read_header(path: Path) -> Header:
    """The header of an image file.

    Raises:
        OSError: it is missing, empty, cut off or not an image.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            size = image.size
            if not _ends(path, image.format):
                raise OSError("cut off")
            upright = size[::-1] if orientation in (5, 6, 7, 8) else size
            transparent = "A" in image.mode or "transparency" in image.info
            return Header(size, upright, image.mode, orientation in range(2, 9), transparent)
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in a reader
        raise OSError(f"not an image ({error})") from None


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 in BGR order and upright, as OpenCV reads it, which the networks are fed.

    Raises:
        UnreadableImage: it is missing, empty, cut off, not an image or too large for OpenCV.
    """
    try:
        read_header(path)
        image = cv2.imread(str(path))
    except FileNotFoundError:
        raise UnreadableImage(f"{path}: no such image") from None
    except PermissionError:
        raise UnreadableImage(f"{path}: cannot be read (permission denied)") from None
    except cv2.error:
        raise UnreadableImage(f"{path}: larger than OpenCV reads (2^30 pixels)") from None
    except (OSError, ValueError, SyntaxError):
        image = None
    if image is None:
        raise UnreadableImage(f"{path}: empty, cut off or not an image")
    return image


def _ends(path: Path, kind: str | None) -> bool:
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    if kind not in ends:
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))  # some cameras append something
        return ends[kind] in file.read()


def read_headers(paths: Sequence[Path]) -> tuple[dict[Path, Header], list[Issue]]:
    """The headers of these files, and a issue for those that are missing or broken."""
    headers, missing, broken = {}, [], []
    for path in paths:
        try:
            headers[path] = read_header(path)
        except FileNotFoundError:
            missing.append(path)
        except OSError:
            broken.append(path)
    issues = []
    if missing:
        issues.append(
            Issue(
                "error", str(missing[0]), _these(missing, "no such image"),
                "put it there or take it out of the annotations",
            )
        )  # fmt: skip
    if broken:
        issues.append(
            Issue(
                "error", str(broken[0]), _these(broken, "empty, cut off or not an image"),
                "copy it again or take it out",
            )
        )  # fmt: skip
    return headers, issues


def check_left_out(folder: Path, read: Sequence[Path], suffixes: Sequence[str]) -> Iterator[Issue]:
    """Findings about files that a folder of classes has and its data set passes over.

    Args:
        folder: of a split, with a folder for each class.
        read: the images that the data set reads.
        suffixes: that it knows an image by.
    """
    known = set(read)
    files = (
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in sorted(names)
        if not name.startswith(".") and name != "Thumbs.db"
    )
    images = {*Image.registered_extensions(), *NEWER_IMAGES}
    homeless, unread, others = [], [], []
    for path in sorted(path for path in files if path not in known):
        suffix = path.suffix.lower()
        kind = homeless if suffix in suffixes else unread if suffix in images else others
        kind.append(path)
    shown = " ".join(suffixes)
    for severity, paths, what, advice in (
        ("warning", homeless, "outside the folders of the classes, not read",
         "put it into its class's folder or take it out"),
        ("warning", unread, f"an image of a kind that is not read ({shown} are)",
         "convert it to JPEG or PNG or take it out"),
        ("note", others, "not an image, not read", "rename it if it is one"),
    ):  # fmt: skip
        if paths:
            yield Issue(severity, str(paths[0]), _these(paths, what), advice)


def _these(paths: Sequence[Path], what: str) -> str:
    names = [path.name for path in paths[1:]]
    return what + (f", and {len(names)} more ({first_of(names)})" if names else "")


def check_images(
    headers: dict[Path, Header], key: str, scales: Sequence[tuple[int, int]]
) -> Iterator[Issue]:
    """Findings about channels, depth and orientation, and about sizes against the recipe's.

    Args:
        headers: of a data set's images.
        key: of the data set in the config.
        scales: (long, short) sides that the pipeline resizes to; empty if it does not.
    """
    kinds = [
        ("note", lambda h: h.mode in ("1", "L", "LA"), "grey", "its one channel is read as three"),
        ("warning", lambda h: h.transparent, "with transparency", "it is thrown away: "
         "what is invisible in the picture is seen by the network; compose it on a ground"),
        ("warning", lambda h: h.mode in DEEP, "of more than 8 bits a channel",
         "cut to 8 when read; stretch the values to 8 bits yourself"),
        ("warning", lambda h: h.mode == "CMYK", "in CMYK", "convert it to RGB"),
    ]  # fmt: skip
    for severity, is_so, what, advice in kinds:
        paths = [path for path, header in headers.items() if is_so(header)]
        if paths:
            yield Issue(
                severity, str(paths[0]), f"image {what} ({len(paths)} of {len(headers)})", advice
            )
    small = [path for path, header in headers.items() if min(header.size) < 32]
    if small:
        yield Issue(
            "warning", str(small[0]),
            f"image of less than 32 pixels ({len(small)} of {len(headers)})",
            "the coarsest map has no cell for it; enlarge or leave out",
        )  # fmt: skip
    if headers and scales:
        yield from _check_scale(headers, key, scales)


def _check_scale(headers, key, scales) -> Iterator[Issue]:
    factors = []
    for header in headers.values():
        long, short = max(header.upright), min(header.upright)
        factors.append(median(min(a / long, b / short) for a, b in scales))
    factor = median(factors)
    shown = " or ".join(f"{a}x{b}" for a, b in (scales[:1] if len(scales) == 1 else scales[::10]))
    if factor > LARGEST_ENLARGEMENT:
        yield Issue(
            "warning", f"{key}.pipeline",
            f"resizes to {shown}, which enlarges the median image {factor:.1f} times",
            "set a scale nearer to the images': it costs time and adds nothing",
        )  # fmt: skip
    elif factor < 1 / LARGEST_REDUCTION:
        yield Issue(
            "warning", f"{key}.pipeline",
            f"resizes to {shown}, which reduces the median image {1 / factor:.1f} times",
            "small objects vanish; set a larger scale or cut the images into tiles",
        )  # fmt: skip
