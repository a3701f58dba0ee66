"""Decode image files: the one decoder of training, evaluation and prediction.

Images are decoded by OpenCV from a file's bytes, in training, evaluation and prediction alike, and
every annotation is compared with the size that this gives. It applies the EXIF orientation of JPEG,
PNG and TIFF, not that of WebP, AVIF and animated PNG, and takes the first frame or page of files
with several. `cv2.imread` differs from `cv2.imdecode` in some of that and is used nowhere.
"""

import io
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from backbones.errors import UnreadableImage

from .files import one_line

ORIENTATION = 0x0112  # EXIF and TIFF tag
BITS, SAMPLES, SAMPLE_FORMAT = 258, 277, 339  # TIFF tags
MOST_BANDS = 4  # that OpenCV decodes
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # of JPEG, but stuffing and restarts
PNG = b"\x89PNG"
DAMAGED = "empty, cut off or not an image"


class Header(NamedTuple):
    """Hold what the header of an image file states.

    Attributes:
        size: (width, height) as stored.
        upright: (width, height) as decoded, rotated where an orientation is applied.
        mode: PIL's name of channels and depth.
        rotated: the orientation is applied and rotates or mirrors.
        transparent: has an alpha channel or a transparent colour.
    """

    size: tuple[int, int]
    upright: tuple[int, int]
    mode: str
    rotated: bool
    transparent: bool


def read_header(path: Path) -> Header:
    """Read the header of an image file without decoding its pixels.

    Raises:
        OSError: it is missing, empty, cut off, not an image or one that OpenCV does not decode; its
            text states it.
    """
    try:
        with path.open("rb") as file, _any_size():
            if reason := _undecodable(file):
                raise OSError(reason)
            file.seek(0)
            with Image.open(file) as image:
                if not _is_whole(file, image.format):
                    raise OSError("cut off")
                orientation = _applied_orientation(image)
                size = image.size
                mode, transparent = image.mode, image.has_transparency_data
                turned = (size[1], size[0]) if orientation in (5, 6, 7, 8) else size
                if image.format == "TIFF":  # Pillow has turned it
                    stored, upright = turned, size
                else:
                    stored, upright = size, turned
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in a reader
        raise OSError(f"not an image ({error})") from None
    return Header(stored, upright, mode, orientation in range(2, 9), transparent)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file as decoded.

    Raises:
        UnreadableImage: it is missing, cut off, not an image or one that OpenCV does not decode.
    """
    try:
        return read_header(path).upright
    except OSError as error:
        raise _unreadable(path, error) from None


def read_image(path: Path) -> np.ndarray:
    """Decode an image file into (H, W, 3) uint8 in BGR order, as `LoadImage` does.

    Raises:
        UnreadableImage: it is missing, empty, cut off, not an image or too large for OpenCV.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return decode_image(content, path)


def decode_image(content: bytes, path: object) -> np.ndarray:
    """Decode the content of an image file into (H, W, 3) uint8 in BGR order.

    Args:
        content: all bytes of the file.
        path: named in errors.

    Raises:
        UnreadableImage: it is empty, cut off, not an image or too large for OpenCV.
    """
    image = None
    # OpenCV takes an animated PNG that is cut behind its first frame.
    if content and (content[:4] != PNG or _is_whole(io.BytesIO(content), "PNG")):
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            reason = "damaged, or larger than OpenCV decodes (2^30 pixels)"
            raise UnreadableImage(f"{one_line(path)}: {reason}", where=path) from None
    if image is None:
        reason = _tiff_reason(content) or DAMAGED
        raise UnreadableImage(f"{one_line(path)}: {reason}", where=path)
    return image


def read_label_map(path: Path) -> np.ndarray:
    """Decode a label map: (H, W) values, indices of a palette image, or (H, W, channels).

    Label maps are decoded by Pillow, as mmseg does: the stored values are needed.

    Raises:
        OSError: it is missing, cut off, damaged or not an image.
    """
    try:
        with _any_size(), Image.open(path) as image:
            labels, kind = np.asarray(image), image.format
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in a reader
        raise OSError(f"not an image ({error})") from None
    # Pillow leaves rows that a PNG lacks at 0, which is a class.
    if kind == "PNG":
        content = np.fromfile(path, np.uint8)
        try:
            whole = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) is not None
        except cv2.error:
            whole = False
        if not whole:
            raise OSError("damaged")
    return labels


def reason_of(error: OSError) -> str:
    """Describe briefly why `read_header` has failed."""
    if isinstance(error, FileNotFoundError):
        return "no such image"
    if error.errno is not None:
        return f"cannot be read ({error.strerror})"
    text = str(error)
    return text if text.startswith("TIFF") else DAMAGED


def _unreadable(path: Path, error: OSError) -> UnreadableImage:
    return UnreadableImage(f"{one_line(path)}: {reason_of(error)}", where=path)


@contextmanager
def _any_size() -> Iterator[None]:
    """Raise Pillow's size limit to OpenCV's 2^30 pixels."""
    former, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = former


def _applied_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that OpenCV applies when it decodes this image."""
    if image.format == "TIFF":
        return getattr(image, "tag_v2", {}).get(ORIENTATION, 1)
    applies = image.format in ("JPEG", "MPO") or (
        image.format == "PNG" and getattr(image, "n_frames", 1) == 1
    )
    if not applies or not image.info.get("exif"):
        return 1
    exif = Image.Exif()  # `getexif` reads XMP too, which OpenCV does not
    try:
        exif.load(image.info["exif"])
        return exif.get(ORIENTATION, 1)
    except Exception:  # damaged EXIF turns nothing
        return 1


def _is_whole(file: BinaryIO, kind: str | None) -> bool:
    """Return whether a JPEG or PNG is complete; phones append videos and depth maps to it."""
    size = file.seek(0, 2)
    if kind == "PNG":
        at = 8
        while at + 8 <= size:
            file.seek(at)
            length, name = struct.unpack(">I4s", file.read(8))
            at += 12 + length
            if name == b"IEND":
                return at <= size
        return False
    if kind in ("JPEG", "MPO"):
        file.seek(max(0, size - 2))
        if file.read(2) == b"\xff\xd9":
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _jpeg_ends(content)
    return True


def _jpeg_ends(content: mmap.mmap) -> bool:
    """Walk through the segments and scans of a JPEG to its end marker."""
    at = 2
    while found := MARKER.search(content, at):
        at, marker = found.end(), content[found.end() - 1]
        if marker == 0xD9:
            return True
        if marker not in (0x01, 0xD8):  # the two without a length
            if at + 2 > len(content):
                return False
            at += int.from_bytes(content[at : at + 2], "big")
    return False


def _undecodable(file: BinaryIO) -> str:
    return _tiff_reason(file) if file.read(2) in (b"II", b"MM") else ""


def _tiff_reason(source: BinaryIO | bytes) -> str:
    """Describe why OpenCV cannot decode such a TIFF; empty if the samples are not the reason."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    start = file.read(8)
    if start[:2] not in (b"II", b"MM"):
        return ""
    start += file.read(8) if start[2:3] == b"\x2b" else b""  # BigTIFF
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        bands = int(tags.get(SAMPLES, 1))
        bits = max(tags.get(BITS, (1,)))
        numbers = max(tags.get(SAMPLE_FORMAT, (1,)))
    except Exception:  # a damaged one, which its reader names
        return ""
    if numbers == 3:
        return f"TIFF of {bits}-bit floating-point samples; write 8-bit or 16-bit integers"
    if bands > MOST_BANDS:
        return f"TIFF of {bands} bands; images have 1, 3 or 4: write three of them"
    if bits > 16:
        return f"TIFF of {bits}-bit samples; write 8-bit or 16-bit integers"
    return ""
