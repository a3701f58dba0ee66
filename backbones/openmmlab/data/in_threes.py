"""Run geometric transforms of three channels on images of any number of bands."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class InThrees(BaseTransform):
    """Run a transform on three bands at a time, with one draw for all of them.

    OpenCV warps and pads at most four channels. The fill of the transform has to be 0: bands are
    moved by their own fill before it, and back after it.

    Args:
        transform: config of the transform, which draws from Python's or NumPy's generator.
        fill: value of each band outside the image; 0 if empty.
    """

    def __init__(self, transform: dict, fill: Sequence[float] = ()):
        self.inner = TRANSFORMS.build(transform)
        self.fill = np.array(fill, np.float32)

    def transform(self, results: dict) -> dict | None:
        """Transform the image, and once what belongs to it."""
        image = results["img"]
        moved = image.reshape(*image.shape[:2], -1).astype(np.float32)
        bands = moved.shape[2]
        if self.fill.size:
            moved = moved - self.fill
        # The last three are filled up with copies: some transforms take no other number.
        first, *rest = np.minimum(np.arange(-(-bands // 3) * 3), bands - 1).reshape(-1, 3)
        beside = {key: value for key, value in results.items() if key != "img"}
        parts = []
        for chosen in rest:
            with _generators_kept():
                part = {**deepcopy(beside), "img": np.ascontiguousarray(moved[..., chosen])}
                parts.append(self.inner(part))
        results["img"] = np.ascontiguousarray(moved[..., first])
        found = self.inner(results)
        if found is None:
            return None
        joined = np.concatenate([found["img"], *(part["img"] for part in parts)], 2)[..., :bands]
        if self.fill.size:
            joined = joined + self.fill
        if image.dtype == np.uint8:
            joined = joined.round().clip(0, 255)
        found["img"] = joined.astype(image.dtype)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Take back the draws from Python's and NumPy's global generators."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
