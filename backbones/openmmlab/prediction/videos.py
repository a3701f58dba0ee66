"""Read and write videos frame by frame with OpenCV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from backbones.atomic_write import atomic_path
from backbones.errors import InputError, UnreadableImage

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our own message reports the error
USUAL_RATE = 25.0  # frames per second if the file names no rate


class Video:
    """Read the frames of a video in order, once.

    Attributes:
        height, width: size of an upright frame in pixels.
        rate: frames per second.
        frames: number of frames according to the file, 0 if it names none.

    Raises:
        UnreadableImage: the file is missing, empty, cut off or not a video that OpenCV reads.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UnreadableImage(f"{path}: no such video", code="not-found", where=path)
        self._capture = cv2.VideoCapture(str(path))
        read, self._first = self._capture.read()
        if not read:
            self._capture.release()
            raise UnreadableImage(
                f"{path}: empty, cut off or not a video that OpenCV reads", where=path
            )
        self.height, self.width = self._first.shape[:2]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if np.isfinite(rate) and rate > 0 else USUAL_RATE
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield upright frames (H, W, 3), uint8 in BGR order."""
        read, frame = True, self._first
        while read:
            yield frame
            read, frame = self._capture.read()

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield lists of `size` frames; the last list may be shorter."""
        batch = []
        for frame in self:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def close(self) -> None:
        self._capture.release()


@contextmanager
def written_video(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """Open a writer of frames (height, width, 3), uint8 BGR, to an mp4 that appears atomically.

    Args:
        path: the file; its folder must exist.
        rate: frames per second.
        size: (width, height).

    Raises:
        InputError: OpenCV has no encoder, or the file cannot be written.
    """
    with atomic_path(path) as part:
        unfinished = part.with_name(part.name + path.suffix)  # OpenCV goes by the suffix
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        try:
            if not writer.isOpened():
                raise InputError(
                    f"{path}: OpenCV cannot write an mp4 here", code="write-failed", where=path
                )
            yield writer
            writer.release()
            unfinished.replace(part)
        finally:
            writer.release()
            unfinished.unlink(missing_ok=True)
