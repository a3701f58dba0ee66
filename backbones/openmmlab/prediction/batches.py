"""Predict images and videos in batches."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np

from backbones.errors import InputError, UnreadableImage
from backbones.openmmlab.data.bands import Bands, nothing_there, read_bands
from backbones.openmmlab.data.rasters import open_raster
from backbones.openmmlab.prediction.progress import FileProgress

from .georeference import Georeference, georeference_of
from .inputs import VIDEOS, output_names
from .instances import Instances
from .predictions import PredictionFiles, summary
from .predictor import Predictor
from .result import Prediction, results
from .tiles import TiledPredictor
from .videos import Video
from .windows import WindowedImage, label_file

MIN_FRAMES = 0.95  # share of the header's frame count below which a video counts as cut off


def predict_files(
    predictor: Predictor,
    tiled: TiledPredictor | None,
    batch_size: int,
    files: PredictionFiles,
    paths: list[Path],
) -> list[str]:
    """Predict files with a progress bar and write the results.

    Args:
        predictor, tiled, batch_size, files: as for `Batches`.
        paths: images and videos.

    Returns:
        One line for each file that could not be predicted.
    """
    with FileProgress(len(paths)) as progress:
        batches = Batches(predictor, tiled, batch_size, files, progress)
        for path, name in zip(paths, output_names(paths), strict=True):
            batches.add(path, name)
        batches.flush()
    files.finish()
    return batches.refused


class Waiting(NamedTuple):
    """Hold an image that waits for its batch: as decoded, and where it has no data (H, W)."""

    path: Path
    name: str
    image: np.ndarray
    missing: np.ndarray | None


class Batches:
    """Predict images and videos in batches and write the results.

    Args:
        predictor: the model.
        tiled: the model over tiles of large images; None predicts each image as a whole.
        batch_size: images or frames that go through the network together.
        files: where results are written.
        progress: the bar on the terminal.

    Attributes:
        refused: one line for each file that could not be predicted.
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
        self._waiting: list[Waiting] = []

    def add(self, path: Path, name: str) -> None:
        """Process a video, or queue an image until a batch is full."""
        try:
            if path.suffix.lower() in VIDEOS:
                self.flush()
                self._video(path, name)
            elif self.tiled and self.predictor.bands is not None:
                self.flush()
                self._windows(self.tiled, self.predictor.bands, path, name)
            else:
                self._waiting.append(self._read(path, name))
        except UnreadableImage as error:
            self._refuse(path, str(error))
        if len(self._waiting) >= (1 if self.tiled else self.batch_size):
            self.flush()

    def flush(self) -> None:
        """Predict the queued images."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            found = self._predicted([one.image for one in waiting], waiting[0].path.name)
        except (InputError, cv2.error) as error:  # one is too small or narrow for the network
            if len(waiting) == 1:
                path, _, image, _ = waiting[0]
                reason = error if isinstance(error, InputError) else "cannot be resized"
                self._refuse(path, f"{path}: {image.shape[1]}x{image.shape[0]} pixels: {reason}")
                return
            for one in waiting:
                self._waiting = [one]
                self.flush()
            return
        for (path, name, image, missing), one in zip(waiting, found, strict=True):
            picture, place = self.predictor.picture(image), georeference_of(path)
            self.files.add_image(path, name, picture, one, missing, place)
            self.progress.end(path.name, summary(one, self.files.score))

    def _read(self, path: Path, name: str) -> Waiting:
        if self.predictor.bands is None:
            return Waiting(path, name, self.predictor.read(path), None)
        return Waiting(path, name, *read_bands(path, self.predictor.bands))

    def _predicted(self, images: list[np.ndarray], name: str = "") -> list[Prediction]:
        """Predict each image; report the progress of its tiles if `name` is given."""
        if self.tiled:
            report = partial(self.progress.part, name, unit="tiles") if name else None
            return [cast(Prediction, self.tiled(image, report)) for image in images]
        samples = self.predictor.batch(images)
        return [results(sample, self.predictor.classes) for sample in samples]

    def _windows(self, tiled: TiledPredictor, bands: Bands, path: Path, name: str) -> None:
        """Predict a raster in windows; write its label map, or its instances, with its place."""
        report = partial(self.progress.part, path.name, unit="tiles")
        with open_raster(path) as raster:
            bands.check(raster)
            has_labels = self.predictor.task == "segmentation"
            shape, place = (raster.height, raster.width), Georeference(raster.georeference)
            image = WindowedImage(raster, bands, keep_missing=has_labels)
            if has_labels:
                labels = self.files.folder / "labels" / f"{name}.tif"
                with label_file(labels, shape, len(self.predictor.classes), place) as out:
                    tiled(image, report, out)
                    if not image.has_data:
                        raise nothing_there(path)
                done = f"{raster.width} x {raster.height} labels"
            else:
                found = tiled(image, report)
                assert isinstance(found, Instances)
                if not image.has_data:
                    raise nothing_there(path)
                self.files.add_instances(path, name, shape, found, place)
                done = summary(found, self.files.score)
        self.progress.end(path.name, done)

    def _video(self, path: Path, name: str) -> None:
        with closing(Video(path)) as video, self.files.video(name, video) as written:
            for frames in video.batches(self.batch_size):
                images = [self.predictor.of_frame(frame, path) for frame in frames]
                for frame, one in zip(frames, self._predicted(images), strict=True):
                    written.add(frame, one)
                self.progress.part(path.name, written.frames, video.frames, "frames")
        if written.frames < MIN_FRAMES * video.frames:
            of = f"{written.frames} of {video.frames} frames"
            self._refuse(path, f"{path}: cut off, {of} could be read; their predictions are kept")
        else:
            self.progress.end(path.name, f"{written.frames} frames")

    def _refuse(self, path: Path, why: str) -> None:
        self.refused.append(why)
        self.progress.end(path.name, "rejected, see below")
