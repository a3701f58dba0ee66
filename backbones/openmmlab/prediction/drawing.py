"""Draw predictions: instances with tags, label maps with a legend, classes with scores."""

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backbones.openmmlab.data.metainfo import class_colours

from .instances import CroppedMask
from .segments import Segments

SMALLEST_SIDE = 480  # smaller images are enlarged, so that tags stay legible
LARGEST_SIDE = 4096  # larger images are reduced
BAR = (60, 110, 200)


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    classes: tuple[str, ...],
    masks: np.ndarray | Sequence[CroppedMask] | None = None,
) -> Image.Image:
    """Draw detections or ground truth over their image.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        labels: (n,) indices into `classes`.
        scores: (n,) in [0, 1], or None for ground truth.
        classes: class names.
        masks: n masks or (n, H, W) bool, or None for boxes alone.
    """
    zoom = _zoom(*image.shape[:2])
    canvas = _resized(image)
    height, width = canvas.shape[:2]
    colours = class_colours(len(classes))
    line = max(2, round(min(height, width) / 300))
    # Large ones first: small objects in front of them stay visible.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas)
    if masks is not None:
        for i in order:
            mask = masks[i]
            cropped = mask if isinstance(mask, CroppedMask) else CroppedMask.of(mask)
            left, top, inside = cropped.scaled(zoom)
            inside = inside[: height - top, : width - left]
            window = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
            colour = colours[labels[i]]
            window[inside] = (0.55 * window[inside] + 0.45 * colour).astype(np.uint8)
            contours, _ = cv2.findContours(
                inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            at = (left, top)
            cv2.drawContours(canvas, contours, -1, colour.tolist(), line, cv2.LINE_AA, offset=at)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, round(min(height, width) / 34)))
    taken: list[tuple[float, float, float, float]] = []
    for i in order:
        colour = tuple(colours[labels[i]].tolist())
        x1, y1, x2, y2 = boxes[i] * zoom
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=max(1, line // 2))
    for i in order if scores is None else np.argsort(-scores):
        colour = tuple(colours[labels[i]].tolist())
        x1, y1, *_ = boxes[i] * zoom
        text = classes[labels[i]] if scores is None else f"{classes[labels[i]]} {scores[i]:.2f}"
        _tag(pen, font, text, (x1, y1), colour, picture, taken)
    return picture


def draw_label_map(
    image: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    palette: np.ndarray,
    *,
    legend: bool = True,
) -> Image.Image:
    """Draw a label map over its image, with a legend of its classes, the largest first.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) indices into `classes`; other values (255) are not coloured.
        classes: class names.
        palette: (len(classes), 3) uint8 RGB.
        legend: whether to draw the legend beside the image.
    """
    picture = _resized(image)
    height, width = picture.shape[:2]
    if labels.dtype not in (np.uint8, np.uint16):  # those that OpenCV resizes
        labels = labels.astype(np.int32)
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    labels = cast(np.ndarray, resized)
    known = (labels >= 0) & (labels < len(classes))
    for top in range(0, height, 256):  # a large image in floats takes gigabytes
        rows = slice(top, top + 256)
        part, here = picture[rows], known[rows]
        colours = palette[labels[rows][here]]
        part[here] = (0.4 * part[here] + 0.6 * colours).astype(np.uint8)
    edges = np.zeros_like(known)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    picture[edges] = 255
    if not legend:
        return Image.fromarray(picture)

    areas = np.bincount(labels[known], minlength=len(classes)) / labels.size
    font = ImageFont.load_default(size=16)
    rows = [i for i in np.argsort(-areas) if areas[i] > 0]
    fitting = max(1, (height - 24) // 26)
    lines = [(f"{classes[i]}  {areas[i]:.1%}", tuple(palette[i].tolist())) for i in rows[:fitting]]
    if len(rows) > fitting:
        lines[-1] = (f"and {len(rows) - fitting + 1} smaller", (255, 255, 255))
    margin = 56 + max((int(font.getlength(text)) for text, _ in lines), default=0)
    sheet = Image.new("RGB", (width + margin, height), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for row, (text, colour) in enumerate(lines):
        y = 12 + 26 * row
        pen.rounded_rectangle((width + 14, y, width + 32, y + 18), 4, fill=colour)
        pen.text((width + 40, y + 9), text, font=font, fill="black", anchor="lm")
    return sheet


def draw_segments(
    image: np.ndarray, found: Segments, classes: tuple[str, ...], palette: np.ndarray
) -> Image.Image:
    """Draw a panoptic prediction over its image: every segment outlined and tagged with its class.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: the segments.
        classes: class names.
        palette: (len(classes), 3) uint8 RGB.
    """
    canvas = _resized(image)
    height, width = canvas.shape[:2]
    resized = cv2.resize(found.numbers, (width, height), interpolation=cv2.INTER_NEAREST)
    numbers = cast(np.ndarray, resized)
    line = max(2, round(min(height, width) / 300))
    for number, label in enumerate(found.labels, start=1):
        inside = numbers == number
        colour = palette[label]
        canvas[inside] = (0.5 * canvas[inside] + 0.5 * colour).astype(np.uint8)
        contours, _ = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(canvas, contours, -1, (255, 255, 255), max(1, line // 2), cv2.LINE_AA)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, round(min(height, width) / 34)))
    taken: list[tuple[float, float, float, float]] = []
    for number, label in enumerate(found.labels, start=1):
        inside = np.pad((numbers == number).astype(np.uint8), 1)
        if inside.any():  # the tag is where the segment is thickest
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            left, top, right, bottom = font.getbbox(classes[label])
            corner = (x - (right - left) / 2, y + (bottom - top) / 2)
            colour = tuple(palette[label].tolist())
            _tag(pen, font, classes[label], corner, colour, picture, taken)
    return picture


def draw_scores(image: np.ndarray, names: Sequence[str], scores: np.ndarray) -> Image.Image:
    """Draw an image beside its classes, with bars proportional to the scores.

    Args:
        image: (H, W, 3) uint8 RGB.
        names: classes, best first; a list of synonyms is cut at its first comma.
        scores: (len(names),) in [0, 1].
    """
    picture = _resized(image)
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=16)
    lines = [
        f"{name.split(',')[0]}  {score:.1%}" for name, score in zip(names, scores, strict=True)
    ]
    side = 28 + max(200, *(int(font.getlength(line)) for line in lines))
    sheet = Image.new("RGB", (width + side, height), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for row, (line, score) in enumerate(zip(lines, scores, strict=True)):
        y = 14 + 46 * row
        pen.text((width + 14, y), line, font=font, fill="black")
        pen.rectangle((width + 14, y + 24, width + 14 + round(200 * float(score)), y + 32), BAR)
    return sheet


def column_width(classes: Sequence[str]) -> int:
    """Return the maximum width in pixels of the legend or of the column of scores."""
    font = ImageFont.load_default(size=16)
    return max(228, *(56 + int(font.getlength(f"{name}  100.0%")) for name in classes))


def drawn_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) at which an image is drawn."""
    zoom = _zoom(height, width)
    return max(1, round(height * zoom)), max(1, round(width * zoom))


def _zoom(height: int, width: int) -> float:
    """Return the factor by which a drawn image is resized, an integer if it is enlarged."""
    short, long = sorted((height, width))
    if long > LARGEST_SIDE:
        return LARGEST_SIDE / long
    return max(1, min(-(-SMALLEST_SIDE // short), LARGEST_SIDE // long))


def _resized(image: np.ndarray) -> np.ndarray:
    height, width = drawn_size(*image.shape[:2])
    how = cv2.INTER_AREA if height < len(image) else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=how)


def _tag(pen, font, text, corner, colour, picture, taken) -> None:
    """Draw a filled tag at a box's corner, moved down while it would cover another tag."""
    x, y = corner
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 8, bottom - top + 8
    x = min(max(x, 0), max(picture.width - width, 0))
    y = y - height if y >= height else y
    for _ in range(20):
        if not any(
            x < r and x + width > left_ and y < b and y + height > t for left_, t, r, b in taken
        ):
            break
        y += height
    y = min(max(y, 0), picture.height - height)
    taken.append((x, y, x + width, y + height))
    pen.rounded_rectangle((x, y, x + width, y + height), 3, fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
    pen.text((x + 4 - left, y + 4 - top), text, font=font, fill="black" if bright else "white")
