"""Draw the demo set: shapes on textured grounds, in COCO's, ADE20K's and ImageNet's layouts."""

import io
import json
import sys
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as rle
from rich.progress import track

from backbones.errors import InputError
from backbones.transfer import CONSOLE, QUIET

from .download import emptied

# The demo set's classes: COCO's categories 1..4 are the shapes, label maps go on with the grounds.
DEMO_SHAPES = ("circle", "square", "triangle", "star")
DEMO_GROUNDS = ("gradient", "noise", "stripes", "checks")
DEMO_VERSION = 4  # of the drawing: a set of another version is drawn again
CROP = 64  # width and height of a image of one shape
SIZES = (0.06, 0.11), (0.13, 0.22), (0.25, 0.38)  # radius / image size: small, medium, large
# Each kind of shape favours a hue, as things do; a sixth of them have one nearer to another kind's.
HUE_STD = 0.09
MIN_VISIBLE, MIN_PIXELS = 0.25, 40  # of every shape, under all that is painted over it


def shape_outline(shape: str, radius: float, angle: float) -> np.ndarray:
    """Return the corners of a shape around the origin, (n, 2) float64 in pixels."""
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[shape]
    # In the same circle a triangle looks smaller than a square, and a square than a disc.
    reach = {"circle": 1.0, "square": 1.15, "triangle": 1.3, "star": 1.25}[shape]
    reach = np.full((corners, 1), radius * reach)
    if shape == "star":
        reach[1::2] *= 0.46
    turn = angle + 2 * np.pi * np.arange(corners) / corners
    return reach * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def polygon_coverage(points: np.ndarray, size: int) -> np.ndarray:
    """Return the coverage of each pixel by a polygon, (size, size), from 4 x 4 samples."""
    canvas = Image.new("L", (4 * size, 4 * size))
    # Pixel i spans [i, i + 1], samples 4i to 4i + 3 lie inside it: hence the half. Pillow cuts off.
    corners = (4 * points - 0.5).round()
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=255)
    return np.asarray(canvas.reduce(4)) / 255


def draw_ground(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a texture of two muted tones, (size, size, 3) float64 in [0, 1]."""
    y, x = np.mgrid[:size, :size] / size
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = 2 * np.pi * rng.uniform(5, 10)
    if kind == "gradient":
        mix = (u - u.min()) / np.ptp(u)
    elif kind == "noise":
        mix = np.full((size, size), 0.5)
        for cells in (10, 28, 60):
            grid = Image.fromarray(rng.uniform(-0.34, 0.34, (cells, cells)).astype(np.float32))
            mix += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    elif kind == "stripes":
        mix = 0.5 + 2 * np.sin(waves * u + phase)
    else:  # checks
        mix = 0.5 + 3 * np.sin(waves * u + phase) * np.sin(waves * v + phase)
    hue, value = rng.uniform(), rng.uniform(0.3, 0.6)
    dark = np.array(hsv_to_rgb(hue, rng.uniform(0.08, 0.35), value))
    hue, value = hue + rng.uniform(-0.15, 0.15), value + rng.uniform(0.15, 0.35)
    light = np.array(hsv_to_rgb(hue, rng.uniform(0.08, 0.35), value))
    return dark + mix.clip(0, 1)[:, :, None] * (light - dark)


def draw_scene(
    size: int, rng: np.random.Generator, only: int | None = None
) -> tuple[np.ndarray, np.ndarray, list]:
    """Draw one image of the demo set.

    Args:
        size: width and height in pixels.
        rng: the source of all that is random in the image.
        only: class 0..3 of a single large shape; None draws one to six of all classes and sizes.

    Returns:
        The image, (size, size, 3) uint8 RGB; its label map, (size, size) uint8; and for each shape
        its class 1..4 and its visible pixels, (size, size) bool. A pixel belongs to the last shape
        painted that covers half the pixel.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    near, far = rng.choice(len(DEMO_GROUNDS), 2, replace=False)
    image = draw_ground(DEMO_GROUNDS[near], size, rng)
    label = np.full((size, size), 1 + len(DEMO_SHAPES) + near, np.uint8)
    if rng.uniform() < 0.5:  # a second ground beyond a wavy border
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2) * size
        u = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        v = (y - size / 2) * np.cos(angle) - (x - size / 2) * np.sin(angle)
        beyond = u - offset + 0.05 * size * np.sin(v / size * rng.uniform(4, 10))
        ground = draw_ground(DEMO_GROUNDS[far], size, rng)
        image += (beyond + 0.5).clip(0, 1)[:, :, None] * (ground - image)
        label[beyond >= 0] = 1 + len(DEMO_SHAPES) + far

    owner = np.full((size, size), -1)  # index of the shape that a pixel shows
    classes, wholes = [], []
    wanted = rng.integers(1, 7) if only is None else 1
    for _ in range(100):
        if len(classes) == wanted:
            break
        if only is None:
            kind = int(rng.integers(len(DEMO_SHAPES)))
            radius = size * rng.uniform(*SIZES[rng.choice(3, p=(0.35, 0.4, 0.25))])
            centre = rng.uniform(0.05, 0.95, 2) * size
        else:
            kind, radius = only, size * rng.uniform(*SIZES[-1])
            centre = rng.uniform(0.4, 0.6, 2) * size
        outline = shape_outline(DEMO_SHAPES[kind], radius, rng.uniform(0, 2 * np.pi)) + centre
        cover = polygon_coverage(outline, size)
        (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
        whole = abs(x0 @ y1 - x1 @ y0) / 2  # shoelace formula, with what lies off the image
        painted = np.where(cover >= 0.5, len(classes), owner)
        visible = np.bincount(painted.ravel() + 1, minlength=len(classes) + 2)[1:]
        if (visible < np.maximum(MIN_PIXELS, MIN_VISIBLE * np.array([*wholes, whole]))).any():
            continue
        drop = 1 + round(0.09 * radius)
        shade = Image.fromarray((255 * cover).astype(np.uint8))
        shade = np.asarray(shade.filter(ImageFilter.GaussianBlur(0.1 * radius))) / 255
        image *= 1 - 0.45 * np.pad(shade, ((drop, 0), (drop, 0)))[:size, :size, None]
        hue = kind / len(DEMO_SHAPES) + rng.normal(0, HUE_STD)
        colour = hsv_to_rgb(hue, rng.uniform(0.55, 0.95), rng.uniform(0.65, 0.95))
        light = 1 - 0.16 * (x - centre[0] + y - centre[1]) / radius  # from the upper left
        surface = (light[:, :, None] * np.array(colour)).clip(0, 1)
        image += cover[:, :, None] * (surface - image)
        owner = painted
        classes.append(kind + 1)
        wholes.append(whole)

    image += rng.normal(0, 0.015, image.shape)
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    label = np.where(owner >= 0, np.array([*classes, 0], np.uint8)[owner], label)
    return image, label, [(kind, owner == i) for i, kind in enumerate(classes)]


def panoptic_segments(
    label: np.ndarray, shapes: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[dict]]:
    """Number the shapes and the grounds of an image.

    Args:
        label: label map, (H, W).
        shapes: visible pixels of each shape, (H, W) bool.

    Returns:
        The number of each pixel's segment, (H, W) uint8 from 1, and COCO's rows of the segments.
    """
    numbers = np.zeros(label.shape, np.uint8)
    grounds = [label == kind for kind in np.unique(label) if kind > len(DEMO_SHAPES)]
    rows = []
    for number, mask in enumerate([*shapes, *grounds], start=1):
        numbers[mask] = number
        code = rle.encode(np.asfortranarray(mask, np.uint8))
        rows.append(
            dict(
                id=number,
                category_id=int(label[mask][0]),
                bbox=rle.toBbox(code).tolist(),
                area=int(mask.sum()),
                iscrowd=0,
            )
        )
    return numbers, rows


def encode_image(pixels: np.ndarray, kind: str, quality: int = 93) -> bytes:
    """Encode an image in memory, since Pillow's own writing hides the reason on a full disk."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=quality)
    return file.getvalue()


def write_demo(folder: Path, size: int, counts: dict[str, int], seed: int) -> None:
    """Draw the demo set into an empty folder, every image in COCO's and in ADE20K's layout.

    Image i of a split depends on size, seed, split and i alone: more images do not change the first
    ones. `classes` holds twice as many images of single shapes, in a folder for each class.
    """
    for number, (split, ade_split) in enumerate((("train", "training"), ("val", "validation"))):
        segments = f"annotations/panoptic_{split}2017"
        for sub in (f"{split}2017", f"images/{ade_split}", f"annotations/{ade_split}", segments):
            (folder / sub).mkdir(parents=True)
        images, annotations, panoptic = [], [], []
        numbers = range(counts[split])
        for i in track(numbers, f"drawing {split}", console=CONSOLE, disable=QUIET):
            if QUIET and i % 64 == 0:
                print(f"[{i}/{len(numbers)}] drawing {split}", file=sys.stderr, flush=True)
            image, label, shapes = draw_scene(size, np.random.default_rng([seed, number, i]))
            name, ade_name = f"{i + 1:012}.jpg", f"{ade_split}/ADE_{split}_{i + 1:08}"
            jpeg = encode_image(image, "JPEG")
            (folder / f"{split}2017" / name).write_bytes(jpeg)
            (folder / "images" / f"{ade_name}.jpg").write_bytes(jpeg)
            (folder / "annotations" / f"{ade_name}.png").write_bytes(encode_image(label, "PNG"))
            images.append(dict(id=i + 1, file_name=name, width=size, height=size, license=1))
            number_map, rows = panoptic_segments(label, [mask for _, mask in shapes])
            colours = np.pad(number_map[:, :, None], ((0, 0), (0, 0), (0, 2)))
            panoptic_name = name.replace(".jpg", ".png")
            (folder / segments / panoptic_name).write_bytes(encode_image(colours, "PNG"))
            panoptic.append(dict(image_id=i + 1, file_name=panoptic_name, segments_info=rows))
            for kind, mask in shapes:
                code = rle.encode(np.asfortranarray(mask, np.uint8))
                runs = cast(bytes, code["counts"]).decode()
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i + 1,
                        category_id=kind,
                        bbox=rle.toBbox(code).tolist(),
                        area=int(rle.area(code)),
                        segmentation=dict(size=code["size"], counts=runs),
                        iscrowd=0,
                    )
                )
        data = dict(
            info=dict(description="drawn shapes on textured grounds", version=str(DEMO_VERSION)),
            licenses=[dict(id=1, name="Apache-2.0", url="")],
            images=images,
            annotations=annotations,
            categories=[
                dict(id=kind, name=name, supercategory="shape")
                for kind, name in enumerate(DEMO_SHAPES, start=1)
            ],
        )
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(data))
        categories = [
            dict(id=kind, name=name, isthing=int(name in DEMO_SHAPES), supercategory="shape")
            for kind, name in enumerate((*DEMO_SHAPES, *DEMO_GROUNDS), start=1)
        ]
        data = {**data, "annotations": panoptic, "categories": categories}
        (folder / f"{segments}.json").write_text(json.dumps(data))
        for kind, name in enumerate(DEMO_SHAPES):
            inside = folder / "classes" / split / name
            inside.mkdir(parents=True)
            for i in range(2 * counts[split]):
                rng = np.random.default_rng([seed, 2 + number, kind, i])
                image = draw_scene(CROP, rng, only=kind)[0]
                (inside / f"{name}_{i + 1:06}.jpg").write_bytes(encode_image(image, "JPEG"))


def prepare_demo(root: Path, size: int, train: int, val: int, seed: int) -> None:
    """Create root/demo, unless it exists already with the same arguments.

    Raises:
        InputError: root/demo exists and was not made by this function.
    """
    final, part, old = root / "demo", root / ".demo.part", root / ".demo.old"
    made = dict(version=DEMO_VERSION, size=size, train=train, val=val, seed=seed)
    if final.exists():
        try:
            found = json.loads((final / "demo.json").read_text())
        except (OSError, ValueError):
            raise InputError(
                f"{final}: was not made by this tool (no readable demo.json); move it away",
                code="broken-file",
                where=final,
            ) from None
        if found == made:
            print(f"{final} is already there")
            return
    with emptied(part), emptied(old):
        write_demo(part, size, dict(train=train, val=val), seed)
        (part / "demo.json").write_text(json.dumps(made))
        if final.exists():
            final.rename(old / "demo")
        part.rename(final)
    print(f"{final}: {train} training and {val} validation images of {size}x{size}")
