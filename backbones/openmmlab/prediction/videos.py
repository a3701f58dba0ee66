"""Videos, frame by frame, through OpenCV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from backbones.atomic_write import atomic_path
from backbones.errors import InputError, UnreadableImage

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said by our own line
USUAL_RATE = 25.0  # frames per second where a file has none


class Video:
    """A video's frames, in order; read once.

    Attributes:
        height, width: of a frame in pixels, upright.
        rate: frames per second.
        frames: number of frames as the file says, 0 if it does not.

    Raises:
        UnreadableImage: it is missing, empty, cut off or not a video that OpenCV reads.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UnreadableImage(f"{path}: no such video")
        self._capture = cv2.VideoCapture(str(path))
        read, self._first = self._capture.read()
        if not read:
            self._capture.release()
            raise UnreadableImage(f"{path}: empty, cut off or not a video that OpenCV reads")
        self.height, self.width = self._first.shape[:2]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if np.isfinite(rate) and rate > 0 else USUAL_RATE
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 in BGR order, upright."""
        read, frame = True, self._first
        while read:
            yield frame
            read, frame = self._capture.read()

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Frames, so many at a time; the last ones may be fewer."""
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
    """A writer of frames (height, width, 3) uint8 BGR to an mp4 that appears whole or not at all.

    Args:
        path: its folder exists.
        rate: frames per second.
        size: (width, height).

    Raises:
        InputError: OpenCV has no encoder for it, or it cannot be written.
    """
    with atomic_path(path) as part:
        unfinished = part.with_name(part.name + path.suffix)  # OpenCV goes by the suffix
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        try:
            if not writer.isOpened():
                raise InputError(f"{path}: OpenCV cannot write an mp4 here")
            yield writer
            writer.release()
            unfinished.replace(part)
        finally:
            writer.release()
            unfinished.unlink(missing_ok=True)
