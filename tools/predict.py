#!/usr/bin/env python
"""Draw what a trained model sees in images and videos, and write its predictions as data.

python tools/predict.py CONFIG CHECKPOINT photo.jpg folder/ 'scans/**/*.tif' clip.mp4
python tools/predict.py CONFIG CHECKPOINT aerial.tif --tile 1024
"""

import argparse
import sys
from contextlib import closing, nullcontext
from functools import partial
from glob import glob, has_magic
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from backbones.errors import InputError, UnreadableImage, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides
from backbones.openmmlab.data.image_files import read_image
from backbones.openmmlab.prediction.predictions import Prediction, PredictionFiles, results, summary
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.progress import FileProgress
from backbones.openmmlab.prediction.tiles import TiledPredictor, check_tile
from backbones.openmmlab.prediction.videos import Video
from backbones.weights.checkpoints import trusted

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}


MOST_FRAMES = 0.95  # what headers say of the number of frames may be a little off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, videos, folders of them, or patterns"
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"))
    parser.add_argument("--score", type=float, default=0.5, help="least score of a drawn instance")
    parser.add_argument("--batch-size", type=int, default=1, help="images, frames or tiles at once")
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="cut larger images into tiles of this side"
    )
    parser.add_argument(
        "--overlap", type=int, metavar="PIXELS", help="of tiles; default: a quarter of one"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run the code in a checkpoint, if it holds any",
    )
    args = parser.parse_args()

    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give at least 1")
    if args.tile is None and args.overlap is not None:
        raise InputError(f"--overlap {args.overlap}: give --tile, whose overlap it is")
    if args.tile is not None:
        check_tile(args.tile, args.tile // 4 if args.overlap is None else args.overlap)
    Image.MAX_IMAGE_PIXELS = None  # large images are meant
    cv2.setLogLevel(0)  # what is wrong with a file is said at the end
    paths = find_files(args.paths)
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        predictor = Predictor(config, args.checkpoint, device=args.device)
    tiled = None
    if args.tile is not None:
        tiled = TiledPredictor(predictor, args.tile, args.overlap, args.batch_size)
    files = PredictionFiles(args.out, predictor, args.score)

    with FileProgress(len(paths)) as progress:
        batches = Batches(predictor, tiled, args.batch_size, files, progress)
        for path, name in zip(paths, output_names(paths), strict=True):
            batches.add(path, name)
        batches.flush()
    files.finish()
    refused = batches.refused
    done = len(paths) - len(refused)
    if done:
        where = [args.out / kind for kind in ("pictures", "videos") if (args.out / kind).is_dir()]
        print(f"{done} of {len(paths)} files: {', '.join(map(str, where))}")
    if len(refused) > 1:
        print(*refused, sep="\n", file=sys.stderr)
        raise InputError(f"{len(refused)} of {len(paths)} files are left out; see above")
    if refused:
        raise InputError(refused[0])


class Batches:
    """Images and videos through a model, so many images or frames at a time, and into files.

    Attributes:
        refused: a line for each file that could not be done.
    """

    def __init__(
        self,
        predictor: Predictor,
        tiled: TiledPredictor | None,
        batch_size: int,
        files: PredictionFiles,
        progress: FileProgress,
    ):
        self.predictor, self.tiled, self.batch_size = predictor, tiled, batch_size
        self.files, self.progress = files, progress
        self.refused: list[str] = []
        self._waiting: list[tuple[Path, str, np.ndarray]] = []

    def add(self, path: Path, name: str) -> None:
        """Do a video; do an image as soon as there are enough for a batch."""
        try:
            if path.suffix.lower() in VIDEOS:
                self.flush()
                self._video(path, name)
            else:
                self._waiting.append((path, name, read_image(path)))
        except UnreadableImage as error:
            self._refuse(path, str(error))
        if len(self._waiting) >= (1 if self.tiled else self.batch_size):
            self.flush()

    def flush(self) -> None:
        """Do the images that wait for a batch."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            found = self._predicted([image for *_, image in waiting], waiting[0][0].name)
        except (InputError, cv2.error) as error:  # one is too small or narrow for the network
            if len(waiting) == 1:
                path, _, image = waiting[0]
                reason = error if isinstance(error, InputError) else "cannot be resized"
                self._refuse(path, f"{path}: {image.shape[1]}x{image.shape[0]} pixels: {reason}")
                return
            for one in waiting:
                self._waiting = [one]
                self.flush()
            return
        for (path, name, image), one in zip(waiting, found, strict=True):
            self.files.add_image(path, name, image, one)
            self.progress.end(path.name, summary(one, self.files.score))

    def _predicted(self, images: list[np.ndarray], name: str = "") -> list[Prediction]:
        """What is in each image; with a name, it is said how far its tiles are."""
        if self.tiled:
            said = partial(self.progress.part, name, unit="tiles") if name else None
            return [self.tiled(image, said) for image in images]
        samples = self.predictor.batch(images)
        return [results(sample, self.predictor.classes) for sample in samples]

    def _video(self, path: Path, name: str) -> None:
        with closing(Video(path)) as video, self.files.video(name, video) as written:
            for frames in video.batches(self.batch_size):
                for frame, one in zip(frames, self._predicted(frames), strict=True):
                    written.add(frame, one)
                self.progress.part(path.name, written.frames, video.frames, "frames")
        if written.frames < MOST_FRAMES * video.frames:
            of = f"{written.frames} of {video.frames} frames"
            self._refuse(path, f"{path}: cut off: {of} could be read, whose predictions are kept")
        else:
            self.progress.end(path.name, f"{written.frames} frames")

    def _refuse(self, path: Path, why: str) -> None:
        self.refused.append(why)
        self.progress.end(path.name, "refused, see below")


def find_files(arguments: list[str]) -> list[Path]:
    """The files named, those directly in the folders named and those that patterns match."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += in_folder(path)
        elif path.is_file():
            found.append(path)
        elif has_magic(argument):
            matches = [Path(match) for match in sorted(glob(argument, recursive=True))]
            matches = [m for m in matches if m.suffix.lower() in IMAGES | VIDEOS and m.is_file()]
            if not matches:
                raise InputError(f"{argument}: matches no image or video")
            found += matches
        else:
            raise InputError(f"{path}: no such image, video or folder")
    return list(dict.fromkeys(found))


def in_folder(folder: Path) -> list[Path]:
    inside = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES | VIDEOS)
    if not inside:
        raise InputError(f"{folder}: no images or videos in this folder")
    return inside


def output_names(paths: list[Path]) -> list[str]:
    """A name for each file's predictions: its own, with a number where several are of one name."""
    names: dict[str, None] = {}
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}"
        names[name] = None
    return list(names)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
