"""Write predictions as images, label maps, videos, and data that other programs read."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from PIL import Image

from backbones.atomic_write import atomic_path, write_atomically

from .drawing import column_width, drawn_size
from .georeference import Georeference, write_geojson
from .instances import Instances
from .predictor import Predictor
from .result import Drawing, Prediction
from .segments import Segments
from .videos import Video, written_video
from .windows import ignoring_dtype, label_file

NOWHERE = Georeference(())


class PredictionFiles:
    """Write the predictions of images and videos to a folder.

    Each image gives `pictures/NAME.png`; segmentors also write `labels/NAME.png`, whose pixels are
    classes, detectors `predictions.json` in COCO's format, classifiers `predictions.csv`; panoptic
    models `panoptic/NAME.png` and `panoptic.json` in COCO's panoptic format. Of an image with a
    georeference label maps are `labels/NAME.tif`, `predictions.json` states it, and detectors write
    `vectors/NAME.geojson`. A video
    gives `videos/NAME.mp4`, `videos/NAME.jsonl` with one line a frame and, from segmentors,
    `labels/NAME/FRAME.png`, or `panoptic/NAME/FRAME.png` from panoptic models.

    Args:
        folder: created if missing.
        predictor: the model.
        score: minimum score of a drawn instance.
    """

    def __init__(self, folder: Path, predictor: Predictor, score: float):
        self.folder, self.score = folder, score
        self.classes, self.task = predictor.classes, predictor.task
        self.drawing = Drawing(predictor.classes, predictor.palette)
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(self.classes)]
        self._coco = dict(images=[], annotations=[], categories=categories)
        self._panoptic = dict(images=[], annotations=[], categories=categories)
        self._ranked: list[tuple] = []  # (file, rank, label, class, score)
        folder.mkdir(parents=True, exist_ok=True)

    def add_image(
        self,
        path: Path,
        name: str,
        image: np.ndarray,
        found: Prediction,
        missing: np.ndarray | None = None,
        place: Georeference = NOWHERE,
    ) -> None:
        """Draw an image, write its label map, and keep its data for `finish`.

        Args:
            path: the image's file.
            name: stem of the files to write.
            image: (H, W, 3) uint8 BGR.
            found: the prediction.
            missing: (H, W) true where the image has no data: not labelled.
            place: the image's, which its results get.
        """
        height, width = image.shape[:2]
        if isinstance(found, Instances):
            self.add_instances(path, name, (height, width), found, place)
        elif isinstance(found, Segments):
            number = _add_image(self._panoptic["images"], path, height, width)
            segments = dict(file_name=f"{name}.png", segments_info=found.coco())
            self._panoptic["annotations"].append(dict(image_id=number, **segments))
            _save(Image.fromarray(found.colours), self.folder / "panoptic" / f"{name}.png")
        elif isinstance(found, np.ndarray):
            if missing is not None and missing.any():
                dtype = ignoring_dtype(len(self.classes))
                found = np.where(missing, np.iinfo(dtype).max, found).astype(dtype)
            labels = self.folder / "labels"
            if place:
                shape = (height, width)
                with label_file(labels / f"{name}.tif", shape, len(self.classes), place) as out:
                    out[:, :] = found
            else:
                _save(Image.fromarray(found), labels / f"{name}.png")
        else:
            self._ranked += [(str(path), rank, *row) for rank, row in enumerate(found, start=1)]
        _save(self.drawing(image, found, self.score), self.folder / "pictures" / f"{name}.png")

    def add_instances(
        self, path: Path, name: str, size: tuple[int, int], found: Instances, place: Georeference
    ) -> None:
        """Keep a detector's instances in an image of (height, width) for `finish`."""
        height, width = size
        number = _add_image(self._coco["images"], path, height, width)
        self._coco["images"][-1].update(place.coco())
        write_geojson(self.folder / "vectors" / f"{name}.geojson", found, self.classes, place)
        annotations = self._coco["annotations"]
        for row in found.coco(height, width):
            annotations.append(dict(id=len(annotations) + 1, image_id=number, **row))

    @contextmanager
    def video(self, name: str, video: Video) -> "Iterator[VideoFiles]":
        """Open the files of a video, which appear only when all frames are written.

        Args:
            name: stem of the files to write.
            video: gives the size and the frame rate.
        """
        folder = self.folder / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = drawn_size(video.height, video.width)
        if self.task != "detection":
            width += column_width(self.classes)
        with (
            atomic_path(folder / f"{name}.jsonl") as part,
            part.open("w") as lines,
            written_video(folder / f"{name}.mp4", video.rate, (width, height)) as writer,
        ):
            yield VideoFiles(self, name, video.rate, (width, height), lines, writer)

    def finish(self) -> None:
        """Write the data of all images."""
        if self._coco["images"]:
            write_atomically(self.folder / "predictions.json", json.dumps(self._coco))
        if self._panoptic["images"]:
            write_atomically(self.folder / "panoptic.json", json.dumps(self._panoptic))
        if self._ranked:
            table = io.StringIO(newline="")
            writer = csv.writer(table, lineterminator="\n")
            writer.writerows([("file", "rank", "label", "class", "score"), *self._ranked])
            write_atomically(self.folder / "predictions.csv", table.getvalue())


class VideoFiles:
    """Write the files of one video; see `PredictionFiles.video`."""

    def __init__(
        self,
        files: PredictionFiles,
        name: str,
        rate: float,
        size: tuple[int, int],
        lines: TextIO,
        writer: cv2.VideoWriter,
    ):
        self.files, self.name, self.rate, self.size = files, name, rate, size
        self.lines, self.writer = lines, writer
        self.frames = 0

    def add(self, frame: np.ndarray, found: Prediction) -> None:
        """Write the next frame (H, W, 3) uint8 BGR and its prediction."""
        data: dict[str, Any] = dict(frame=self.frames, seconds=round(self.frames / self.rate, 6))
        if isinstance(found, Instances):
            data["annotations"] = found.coco(*frame.shape[:2])
        elif isinstance(found, Segments):
            picture = Path("panoptic") / self.name / f"{self.frames:06}.png"
            data |= dict(panoptic=str(picture), segments_info=found.coco())
            _save(Image.fromarray(found.colours), self.files.folder / picture)
        elif isinstance(found, np.ndarray):
            label_map = Path("labels") / self.name / f"{self.frames:06}.png"
            data["labels"] = str(label_map)
            _save(Image.fromarray(found), self.files.folder / label_map)
        else:
            names = ("label", "class", "score")
            data["scores"] = [dict(zip(names, row, strict=True)) for row in found]
        self.lines.write(json.dumps(data) + "\n")
        sheet = Image.new("RGB", self.size, "white")  # a legend's width differs by frame
        sheet.paste(self.files.drawing(frame, found, self.files.score), (0, 0))
        self.writer.write(cv2.cvtColor(np.asarray(sheet), cv2.COLOR_RGB2BGR))
        self.frames += 1


def summary(found: Prediction, score: float) -> str:
    """Describe a prediction briefly."""
    if isinstance(found, Instances):
        number = int((found.scores >= score).sum())
        return f"{number} object{'' if number == 1 else 's'}"
    if isinstance(found, Segments):
        return f"{len(found)} segment{'' if len(found) == 1 else 's'}"
    if isinstance(found, np.ndarray):
        number = len(np.unique(found))
        return f"{number} class{'' if number == 1 else 'es'}"
    _, name, best = found[0]
    return f"{name} {best:.2f}"


def _add_image(images: list[dict], path: Path, height: int, width: int) -> int:
    images.append(dict(id=len(images) + 1, file_name=str(path), width=width, height=height))
    return len(images)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
