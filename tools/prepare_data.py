#!/usr/bin/env python
"""Prepare the data that the configs name: the drawn demo set, COCO 2017 or ADE20K.

    tools/prepare_data.py demo      data/demo, drawn in seconds, in COCO's and in ADE20K's layout,
                                    and data/demo/classes, a folder for each shape
    tools/prepare_data.py coco      data/coco/{annotations,train2017,val2017}, 20.4 GB to download
    tools/prepare_data.py ade20k    data/ade/ADEChallengeData2016/{images,annotations}, about 1 GB

What is already there is left alone, what was interrupted goes on where it stopped. A folder gets
its final name when it is complete. Exit status: 0 done, 2 what the message says, 130 Ctrl-C.
"""

import argparse
import fcntl
import hashlib
import io
import json
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from colorsys import hsv_to_rgb
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as rle
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn, track

CONSOLE = Console(stderr=True)
QUIET = not CONSOLE.is_terminal  # no progress bars in a log file


class DataError(Exception):
    """One line for the user (backbones.errors.InputError would import all of torch)."""


@dataclass(frozen=True)
class Archive:
    """A published zip file: its size in bytes and MD5 where known, and where it goes below --root.

    The last part of `folder` is the one top-level folder of the zip file that is unpacked.
    """

    url: str
    size: int | None
    md5: str | None
    folder: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


COCO = "http://images.cocodataset.org"
ADE = "http://data.csail.mit.edu/places/ADEchallenge"
# The publishers give no checksums: these are the ones that independent loaders agree on. There is
# no such figure for the size of ADE20K's file.
DATASETS = {
    "coco": (
        Archive(
            f"{COCO}/annotations/annotations_trainval2017.zip",
            252907541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            "coco/annotations",
        ),
        Archive(
            f"{COCO}/zips/val2017.zip",
            815585330,
            "442b8da7639aecaf257c1dceb8ba8c80",
            "coco/val2017",
        ),
        Archive(
            f"{COCO}/zips/train2017.zip",
            19336861798,
            "cced6f7f71b7629ddf16f17bbcfab6b2",
            "coco/train2017",
        ),
    ),
    "ade20k": (
        Archive(
            f"{ADE}/ADEChallengeData2016.zip",
            None,
            "7328b3957e407ddae1d3cbf487f149ef",
            "ade/ADEChallengeData2016",
        ),
    ),
}

# The demo set's classes: COCO's categories 1..4 are the shapes, label maps go on with the grounds.
DEMO_SHAPES = ("circle", "square", "triangle", "star")
DEMO_GROUNDS = ("gradient", "noise", "stripes", "checks")
DEMO_VERSION = 3  # of the drawing: a set of another version is drawn anew
CROP = 64  # width and height of a picture of one shape
SIZES = (0.06, 0.11), (0.13, 0.22), (0.25, 0.38)  # radius / image size: small, medium, large
# Each kind of shape favours a hue, as things do; a sixth of them have one nearer to another kind's.
HUE_DEVIATION = 0.09
MIN_VISIBLE, MIN_PIXELS = 0.25, 40  # of every shape, under all that is painted over it


def shape_outline(shape: str, radius: float, angle: float) -> np.ndarray:
    """Corners of a shape around the origin, (n, 2) float64 in pixels; a circle has 64."""
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[shape]
    # In the same circle a triangle looks smaller than a square, and a square than a disc.
    reach = {"circle": 1.0, "square": 1.15, "triangle": 1.3, "star": 1.25}[shape]
    reach = np.full((corners, 1), radius * reach)
    if shape == "star":
        reach[1::2] *= 0.46
    turn = angle + 2 * np.pi * np.arange(corners) / corners
    return reach * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def polygon_coverage(points: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel that a polygon covers, (size, size) float64, from 4 x 4 samples."""
    canvas = Image.new("L", (4 * size, 4 * size))
    # Pixel i spans [i, i + 1], samples 4i to 4i + 3 lie inside it: hence the half. Pillow cuts off.
    corners = (4 * points - 0.5).round()
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=255)
    return np.asarray(canvas.reduce(4)) / 255


def draw_ground(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of two muted tones, (size, size, 3) float64 in [0, 1]."""
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
    """One picture of the demo set.

    Args:
        size: width and height in pixels.
        rng: all that is random in the picture.
        only: class 0..3 of the one large shape in it; None for one to six of all classes and sizes.

    Returns:
        The picture, (size, size, 3) uint8 RGB; its label map, (size, size) uint8; and of each shape
        its class 1..4 and its visible pixels, (size, size) bool. A pixel belongs to the last shape
        painted that covers half of it.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    near, far = rng.choice(len(DEMO_GROUNDS), 2, replace=False)
    picture = draw_ground(DEMO_GROUNDS[near], size, rng)
    label = np.full((size, size), 1 + len(DEMO_SHAPES) + near, np.uint8)
    if rng.uniform() < 0.5:  # a second ground beyond a wavy border
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2) * size
        u = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        v = (y - size / 2) * np.cos(angle) - (x - size / 2) * np.sin(angle)
        beyond = u - offset + 0.05 * size * np.sin(v / size * rng.uniform(4, 10))
        ground = draw_ground(DEMO_GROUNDS[far], size, rng)
        picture += (beyond + 0.5).clip(0, 1)[:, :, None] * (ground - picture)
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
        whole = abs(x0 @ y1 - x1 @ y0) / 2  # shoelace formula, with what lies off the picture
        painted = np.where(cover >= 0.5, len(classes), owner)
        visible = np.bincount(painted.ravel() + 1, minlength=len(classes) + 2)[1:]
        if (visible < np.maximum(MIN_PIXELS, MIN_VISIBLE * np.array([*wholes, whole]))).any():
            continue
        drop = 1 + round(0.09 * radius)
        shade = Image.fromarray((255 * cover).astype(np.uint8))
        shade = np.asarray(shade.filter(ImageFilter.GaussianBlur(0.1 * radius))) / 255
        picture *= 1 - 0.45 * np.pad(shade, ((drop, 0), (drop, 0)))[:size, :size, None]
        hue = kind / len(DEMO_SHAPES) + rng.normal(0, HUE_DEVIATION)
        colour = hsv_to_rgb(hue, rng.uniform(0.55, 0.95), rng.uniform(0.65, 0.95))
        light = 1 - 0.16 * (x - centre[0] + y - centre[1]) / radius  # from the upper left
        surface = (light[:, :, None] * np.array(colour)).clip(0, 1)
        picture += cover[:, :, None] * (surface - picture)
        owner = painted
        classes.append(kind + 1)
        wholes.append(whole)

    picture += rng.normal(0, 0.015, picture.shape)
    picture = (255 * picture.clip(0, 1)).round().astype(np.uint8)
    label = np.where(owner >= 0, np.array([*classes, 0], np.uint8)[owner], label)
    return picture, label, [(kind, owner == i) for i, kind in enumerate(classes)]


def encode_image(pixels: np.ndarray, kind: str, quality: int = 93) -> bytes:
    """An image file in memory; on a full disk Pillow's own writing would not say what is wrong."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=quality)
    return file.getvalue()


def write_demo(folder: Path, size: int, counts: dict[str, int], seed: int) -> None:
    """Draw the demo set into an empty folder, every picture in COCO's and in ADE20K's layout.

    Picture i of a split depends on size, seed, split and i: more pictures do not change the first.
    Beside them are twice as many pictures of each shape alone, in a folder for each class.
    """
    for number, (split, ade_split) in enumerate((("train", "training"), ("val", "validation"))):
        for sub in (f"{split}2017", f"images/{ade_split}", f"annotations/{ade_split}"):
            (folder / sub).mkdir(parents=True)
        images, annotations = [], []
        numbers = range(counts[split])
        for i in track(numbers, f"drawing {split}", console=CONSOLE, disable=QUIET):
            picture, label, shapes = draw_scene(size, np.random.default_rng([seed, number, i]))
            name, ade_name = f"{i + 1:012}.jpg", f"{ade_split}/ADE_{split}_{i + 1:08}"
            jpeg = encode_image(picture, "JPEG")
            (folder / f"{split}2017" / name).write_bytes(jpeg)
            (folder / "images" / f"{ade_name}.jpg").write_bytes(jpeg)
            (folder / "annotations" / f"{ade_name}.png").write_bytes(encode_image(label, "PNG"))
            images.append(dict(id=i + 1, file_name=name, width=size, height=size, license=1))
            for kind, mask in shapes:
                code = rle.encode(np.asfortranarray(mask, np.uint8))
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i + 1,
                        category_id=kind,
                        bbox=rle.toBbox(code).tolist(),
                        area=int(rle.area(code)),
                        segmentation=dict(size=code["size"], counts=code["counts"].decode()),
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
        for kind, name in enumerate(DEMO_SHAPES):
            inside = folder / "classes" / split / name
            inside.mkdir(parents=True)
            for i in range(2 * counts[split]):
                rng = np.random.default_rng([seed, 2 + number, kind, i])
                picture = draw_scene(CROP, rng, only=kind)[0]
                (inside / f"{name}_{i + 1:06}.jpg").write_bytes(encode_image(picture, "JPEG"))


def prepare_demo(root: Path, size: int, train: int, val: int, seed: int) -> None:
    """Make root/demo, unless it is there already with the same arguments."""
    final, part, old = root / "demo", root / ".demo.part", root / ".demo.old"
    made = dict(version=DEMO_VERSION, size=size, train=train, val=val, seed=seed)
    if final.exists():
        try:
            found = json.loads((final / "demo.json").read_text())
        except (OSError, ValueError):
            raise DataError(
                f"{final} has no readable demo.json, so it is not this tool's: move it away"
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
    print(f"{final}: {train} training and {val} validation pictures of {size}x{size}")


def prepare_archives(root: Path, archives: tuple[Archive, ...]) -> None:
    """Download and unpack the archives whose folders are not there yet."""
    for archive in archives:
        target = root / archive.folder
        if target.is_dir() and any(target.iterdir()):
            print(f"{target} is already there")
            continue
        path = fetch(archive, root / "downloads")
        unpack(path, target)
        print(f"{target} is ready; {path} can be deleted")


def fetch(archive: Archive, folder: Path, patience: float = 1.0) -> Path:
    """Download an archive into a folder, check its size and MD5, and return its path.

    Goes on with `NAME.part`, across connections that break: it waits `patience` seconds, twice that
    and so on, and gives up when nothing came after five waits. A file NAME that is there already is
    checked and used: so one fetched by hand gets in.

    Raises:
        DataError: no connection, an HTTP error, no space, or not the published file.
    """
    folder.mkdir(exist_ok=True)
    final, part = folder / archive.name, folder / f"{archive.name}.part"
    if final.exists():
        if flaw := find_flaw(final, archive):
            raise DataError(f"{final} {flaw}; delete it and run again")
        return final
    print(f"downloading {archive.url}")
    started, failures = False, 0
    with byte_bar() as bar:
        task = bar.add_task("downloading", total=archive.size)
        while True:
            have = part.stat().st_size if part.exists() else 0
            if have == archive.size:
                break
            problem = receive(archive, part, have, partial(bar.update, task))
            if problem is None:
                break
            if part.exists() and part.stat().st_size > have:
                started, failures = True, 0
            # Where nothing ever came there is no network; once something has, it may come back.
            if not started or failures == 5:
                raise DataError(by_hand(archive, folder, f"{archive.url}: {problem}"))
            time.sleep(patience * 2**failures)
            failures += 1
    if flaw := find_flaw(part, archive):
        part.unlink()
        raise DataError(by_hand(archive, folder, f"what {archive.url} sent {flaw}, removed"))
    part.rename(final)
    return final


def receive(archive: Archive, part: Path, have: int, report: Callable[..., None]) -> str | None:
    """Ask once for all that follows the first `have` bytes; None when it came, else why not."""
    request = Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code == 416:  # nothing follows: all is here, or the check will tell
            return None
        if error.code >= 500:
            return f"HTTP {error.code} {error.reason}"
        problem = f"{archive.url}: HTTP {error.code} {error.reason}"
        raise DataError(by_hand(archive, part.parent, problem)) from None
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response:
        if response.status != 206:  # the server sends all of it, whatever was asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = archive.size if length is None else have + int(length)
        if archive.size not in (None, total):
            problem = f"{archive.url} offers {total} bytes, not the {archive.size} expected"
            raise DataError(by_hand(archive, part.parent, problem))
        # Photographs do not shrink in a zip file: unpacked they take its size once more.
        require_space(part.parent, 2 * (total or 0) - have)
        with part.open("ab" if have else "wb") as file:
            while True:
                try:
                    chunk = response.read1(1 << 18)
                except (OSError, HTTPException) as error:
                    return str(error) or type(error).__name__
                if not chunk:
                    break
                file.write(chunk)
                have += len(chunk)
                report(completed=have, total=total)
    return None if total in (None, have) else f"closed after {have} of {total} bytes"


def find_flaw(path: Path, archive: Archive) -> str | None:
    """What sets a file apart from the published one, or None."""
    size = path.stat().st_size
    if archive.size not in (None, size):
        return f"has {size} bytes where {archive.size} are expected"
    digest = hashlib.md5(usedforsecurity=False)
    with byte_bar() as bar, bar.open(path, "rb", description="checking") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if archive.md5 not in (None, digest.hexdigest()):
        return f"has MD5 {digest.hexdigest()} where {archive.md5} is expected"
    return None


def by_hand(archive: Archive, folder: Path, problem: str) -> str:
    """The line for a download that failed."""
    place = folder / archive.name
    return f"{problem}; run again, or get {archive.name} by hand and put it at {place}"


def unpack(path: Path, target: Path) -> None:
    """Unpack the top-level folder of target's name, which appears there when it is complete.

    Raises:
        DataError: no space, damaged, without that folder, or a member would land elsewhere.
    """
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(path) as file, emptied(part):
            members = []
            for member in file.infolist():
                inside = PurePosixPath(member.filename.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts:
                    raise DataError(f"{path} is not safe: {inside} would be written elsewhere")
                if inside.parts[:1] == (target.name,):
                    members.append(member)
            require_space(part, sum(member.file_size for member in members))
            for member in track(members, f"unpacking {path.name}", console=CONSOLE, disable=QUIET):
                file.extract(member, part)
            if not (part / target.name).is_dir():
                raise DataError(f"{path} has no folder {target.name}: not the published file")
            (part / target.name).rename(target)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from None


def require_space(folder: Path, needed: int) -> None:
    """Raise DataError unless that many bytes are free where the folder is."""
    if needed > (free := shutil.disk_usage(folder).free):
        need = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        raise DataError(f"not enough space for {folder}: {need}; choose another --root")


def byte_bar() -> Progress:
    """Progress in bytes, with rate and time left."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=CONSOLE, disable=QUIET)


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """A new folder to work in, in place of what a killed run left of it; removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Make the root and keep a second run out of it: both would write the same .part files."""
    if not root.absolute().parent.is_dir():
        raise DataError(f"--root {root}: the folder {root.absolute().parent} does not exist")
    root.mkdir(exist_ok=True)
    with open(root / ".prepare_data.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another prepare_data.py is at work in {root}") from None
        except OSError as error:  # some network file systems have no locks
            print(f"{root}: {error.strerror}; make sure that no other prepare_data.py runs")
        yield


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    demo = commands.add_parser("demo", help="draw the demo set")
    demo.add_argument("--size", type=int, default=160, help="width and height, 160 pixels")
    demo.add_argument("--train", type=int, default=320, help="training pictures, 320")
    demo.add_argument("--val", type=int, default=64, help="validation pictures, 64")
    demo.add_argument("--seed", type=int, default=0, help="another one, other pictures")
    for name in DATASETS:
        command = commands.add_parser(name, help="download, check and unpack")
        command.add_argument("--mirror", help="URL of a folder with the same zip files")
    for command in commands.choices.values():
        command.add_argument("--root", type=Path, default=Path("data"), help="where to, data")
    args = parser.parse_args(argv)
    for name, least in (("size", 64), ("train", 1), ("val", 1), ("seed", 0)):
        if getattr(args, name, least) < least:
            parser.error(f"--{name} {getattr(args, name)} is less than {least}")
    mirror = getattr(args, "mirror", None)
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror {mirror} does not start with http:// or https://")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        with locked(args.root):
            if args.dataset == "demo":
                prepare_demo(args.root, args.size, args.train, args.val, args.seed)
            else:
                archives = DATASETS[args.dataset]
                if args.mirror:
                    archives = tuple(
                        replace(a, url=f"{args.mirror.rstrip('/')}/{a.name}") for a in archives
                    )
                prepare_archives(args.root, archives)
        return 0
    except DataError as error:
        problem, status = str(error), 2
    except OSError as error:
        problem, status = f"{error.filename or args.root}: {error.strerror or error}", 2
    except KeyboardInterrupt:
        problem, status = "interrupted; run again to go on", 130
    print(f"prepare_data.py: {problem}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
