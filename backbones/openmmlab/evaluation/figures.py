"""Define the interface of all tasks' report figures, and keep the images predicted worst."""

import base64
import heapq
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from backbones.errors import UnreadableImage
from backbones.openmmlab.data.bands import Bands, composite, read_bands
from backbones.openmmlab.data.decoding import read_image
from backbones.openmmlab.tasks import Sample

LONGEST_SIDE = 560  # pixels of an image in the report


class Figures(Protocol):
    """Collect what an evaluation reports beyond scores: confusions, classes and worst images."""

    def add(self, sample: Sample) -> None:
        """Add one image's predictions."""
        ...

    def state(self) -> Any:
        """Return the state that another rank merges into its own."""
        ...

    def merge(self, state: Any) -> None:
        """Add the images of another rank."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON types, with the worst images drawn."""
        ...


class Worst:
    """Keep the few samples with the lowest scores; iterate from the lowest.

    Args:
        count: how many are kept.
    """

    def __init__(self, count: int):
        self.count = count
        self._seen = 0  # breaks ties in favour of what came first
        self._heap: list[tuple[float, int, str, dict]] = []

    def takes(self, score: float) -> bool:
        """Return whether a sample of this score would be kept."""
        return self.count > 0 and (len(self._heap) < self.count or -score > self._heap[0][0])

    def add(self, score: float, name: str, sample: dict) -> None:
        """Keep a sample if its score is low enough.

        Args:
            score: score of the image; lower is worse.
            name: path of the image.
            sample: what is needed to draw it later.
        """
        if self.takes(score):
            push = heapq.heappush if len(self._heap) < self.count else heapq.heappushpop
            self._seen += 1
            push(self._heap, (-score, -self._seen, name, sample))

    def __iter__(self) -> Iterator[tuple[float, str, dict]]:
        for score, _, name, sample in sorted(self._heap, key=lambda row: (-row[0], row[2])):
            yield -score, name, sample


def read_rgb(path: str, bands: Bands | None) -> np.ndarray | None:
    """Read an image as (H, W, 3) uint8 RGB; None if it no longer exists.

    Args:
        path: the image.
        bands: the bands that the model reads, of which the composite is shown; None for colour.
    """
    try:
        if bands is None:
            image = read_image(Path(path))
        else:
            image = composite(read_bands(Path(path), bands)[0], bands)
    except UnreadableImage:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_pair(
    path: str, score: float, note: str, truth: Image.Image, prediction: Image.Image
) -> dict[str, Any]:
    """Return ground truth and prediction of an image for the report, drawn and named.

    Args:
        path: path of the image; its name is shown.
        score: score of the prediction.
        note: what is wrong with the prediction, in a few words.
        truth, prediction: drawn over the image.
    """
    return dict(
        file=Path(path).name, score=score, note=note,
        truth=as_data_url(truth), prediction=as_data_url(prediction),
    )  # fmt: skip


def as_data_url(image: Image.Image) -> str:
    """Encode an image as a `data:` URL of a JPEG, reduced to the report's size."""
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def confusion_triples(counts: Mapping[tuple[int, int], int]) -> list[list[int]]:
    """Return the cells of a confusion matrix that are not 0: true label, predicted label, count."""
    return [[i, j, int(n)] for (i, j), n in sorted(counts.items()) if n]
