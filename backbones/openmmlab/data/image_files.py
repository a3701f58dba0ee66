"""Find faults in a data set's image files: missing, broken, of unusual channels, depth or size."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from .decoding import Header, read_header, read_image, reason_of
from .files import is_clutter, one_line
from .issues import Issue, first_of
from .rasters import read_raster_header

__all__ = [
    "Header", "check_images", "check_left_out", "read_header", "read_headers", "read_image",
]  # fmt: skip

DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
# Suffixes of images that Pillow knows with a plugin only, or a newer release.
NEWER_IMAGES = (".avif", ".heic", ".heif", ".jxl")
# How far a recipe's scale may be from the images' own before details are lost or made up.
LARGEST_ENLARGEMENT = 2.0
LARGEST_REDUCTION = 4.0


def read_headers(
    paths: Sequence[Path], rasters: bool = False
) -> tuple[dict[Path, Header], list[Issue]]:
    """Read the headers of these files.

    Args:
        paths: image files.
        rasters: images may have any number of bands and depth.

    Returns:
        The headers of those that can be decoded, and an issue for each reason why others cannot.
    """
    headers: dict[Path, Header] = {}
    failed: dict[str, list[Path]] = {}
    for path in paths:
        try:
            headers[path] = read_raster_header(path) if rasters else read_header(path)
        except OSError as error:
            reason = reason_of(error)
            if rasters and error.errno is None:
                reason = str(error)
            failed.setdefault(reason, []).append(path)
    issues = []
    for reason, broken in sorted(failed.items(), key=lambda one: one[0] != "no such image"):
        advice = "copy it again or remove it"
        if reason == "no such image":
            advice = "add the file or remove it from the annotations"
        elif reason.startswith("TIFF"):
            advice = "convert it or remove it"
        issues.append(
            Issue("error", one_line(broken[0]), _these(broken, reason), advice, "bad-image")
        )
    return headers, issues


def check_left_out(folder: Path, read: Sequence[Path], suffixes: Sequence[str]) -> Iterator[Issue]:
    """Report files in folders of classes that the data set does not read.

    Args:
        folder: folder of a split, with a folder for each class.
        read: the images that the data set reads.
        suffixes: suffixes of the images that it reads.
    """
    known, deep = set(read), len(folder.parts)
    files = (
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in sorted(names)
        if not is_clutter(name) and not any(map(is_clutter, Path(parent).parts[deep:]))
    )
    images = {*Image.registered_extensions(), *NEWER_IMAGES}
    homeless, unread, others = [], [], []
    for path in sorted(path for path in files if path not in known):
        suffix = path.suffix.lower()
        kind = homeless if suffix in suffixes else unread if suffix in images else others
        kind.append(path)
    shown = " ".join(suffixes)
    for severity, paths, what, advice in (
        ("warning", homeless, "outside the class folders, not read",
         "move it into its class folder or remove it"),
        ("warning", unread, f"an image of a format that is not read ({shown} are)",
         "convert it to JPEG or PNG or remove it"),
        ("note", others, "not an image, not read", "rename it if it is one"),
    ):  # fmt: skip
        if paths:
            yield Issue(severity, one_line(paths[0]), _these(paths, what), advice)


def _these(paths: Sequence[Path], what: str) -> str:
    names = [one_line(path.name) for path in paths[1:]]
    return what + (f", and {len(names)} more ({first_of(names)})" if names else "")


def check_images(
    headers: dict[Path, Header], key: str, scales: Sequence[tuple[int, int]]
) -> Iterator[Issue]:
    """Check channels and depth, and compare sizes with the recipe's.

    Args:
        headers: headers of a data set's images.
        key: config key of the data set.
        scales: (long, short) sides that the pipeline resizes to; empty if it does not.
    """
    kinds = [
        ("note", lambda h: h.mode in ("1", "L", "LA"), "grey", "its channel is read as three"),
        ("warning", lambda h: h.transparent, "with transparency", "the alpha channel is dropped: "
         "the network sees transparent pixels; blend the image with a background"),
        ("warning", lambda h: h.mode in DEEP, "with more than 8 bits per channel",
         "reduced to 8 bits when read; rescale the values to 8 bits yourself"),
        ("warning", lambda h: h.mode == "CMYK", "in CMYK", "convert it to RGB"),
    ]  # fmt: skip
    for severity, is_so, what, advice in kinds:
        paths = [path for path, header in headers.items() if is_so(header)]
        if paths:
            yield Issue(
                severity,
                one_line(paths[0]),
                f"image {what} ({len(paths)} of {len(headers)})",
                advice,
            )
    small = [path for path, header in headers.items() if min(header.size) < 32]
    if small:
        yield Issue(
            "warning", one_line(small[0]),
            f"image smaller than 32 pixels ({len(small)} of {len(headers)})",
            "the coarsest map has no cell for it; enlarge or remove it",
        )  # fmt: skip
    if headers and scales:
        yield from _check_scale(headers, key, scales)


def _check_scale(
    headers: dict[Path, Header], key: str, scales: Sequence[tuple[int, int]]
) -> Iterator[Issue]:
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
            "set a scale closer to the images'; enlarging costs time and adds no detail",
        )  # fmt: skip
    elif factor < 1 / LARGEST_REDUCTION:
        yield Issue(
            "warning", f"{key}.pipeline",
            f"resizes to {shown}, which reduces the median image {1 / factor:.1f} times",
            "small objects vanish; set a larger scale or cut the images into tiles",
        )  # fmt: skip
