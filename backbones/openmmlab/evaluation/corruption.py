"""Corrupt images with the 15 corruptions of Hendrycks & Dietterich, by image name and seed."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from backbones.errors import InputError
from backbones.openmmlab.data.band_pipelines import loaded_bands

LIBRARY = "imagecorruptions-imaug"
# arXiv:1903.12261, Figure 1, in its order; for detectors arXiv:1907.07484.
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32  # pixels; the library's
# Weather in visible light, a change of HSV, and a codec of 8-bit colour.
COLOUR_ONLY = ("snow", "frost", "fog", "brightness", "jpeg_compression")
# Deviations from a band's mean that stand for black and white: photographs of ImageNet have 8 bits
# within 2.2 of them.
SPAN = 2.2
OWN_GENERATOR = ("impulse_noise", "glass_blur")  # take a seed as an argument


def load_library() -> str:
    """Compile the library's functions once for all DataLoader workers; return its version.

    Raises:
        InputError: it is not installed.
    """
    try:
        found = version(LIBRARY)
    except PackageNotFoundError:
        raise InputError(
            f"corruptions: {LIBRARY} is missing; pip install {LIBRARY} "
            "(the package imagecorruptions itself does not work with NumPy 2)",
            code="missing-package",
            where=LIBRARY,
        ) from None
    blank = np.zeros((LEAST_SIDE, LEAST_SIDE, 3), dtype=np.uint8)
    corrupt(blank, "glass_blur", 1, name="", seed=0)
    return f"{LIBRARY} {found}"


def corrupt(
    image: np.ndarray, corruption: str, severity: int, *, name: str, seed: int
) -> np.ndarray:
    """Return a corrupted copy of an image; equal arguments give equal pixels.

    An image is corrupted alike at all severities, by more or less of the same draw, as far as the
    corruption allows it.

    Args:
        image: (H, W, 3) uint8, RGB, 32 pixels or more on each side.
        corruption: a name of `CORRUPTIONS`.
        severity: 1 to 5; 0 leaves the image as it is.
        name: the image's name; the draw depends on it.
        seed: seed of the draw.
    """
    if severity == 0:
        return image.copy()
    from imagecorruptions import corrupt as library_corrupt

    digest = hashlib.sha256(f"{seed} {corruption} {name}".encode()).digest()
    drawn = int.from_bytes(digest[:4], "big")
    given = {"seed": drawn} if corruption in OWN_GENERATOR else {}
    with _seeded(drawn):
        return library_corrupt(image, severity, corruption, **given)


def corrupt_bands(
    image: np.ndarray,
    corruption: str,
    severity: int,
    limits: Sequence[tuple[float, float]],
    *,
    name: str,
    seed: int,
) -> np.ndarray:
    """Return a corrupted copy of an image of any bands, each corrupted as a grey picture.

    What the corruption changes in the picture is added to the band, so that nothing else is lost to
    8 bits. Displacements and blurs are those of one draw for all bands, noise is drawn for each.

    Args:
        image: (H, W, bands), 32 pixels or more on each side.
        corruption: a name of `CORRUPTIONS` that is not in `COLOUR_ONLY`.
        severity, name, seed: as in `corrupt`.
        limits: the values of each band that are black and white in the picture.

    Returns:
        (H, W, bands) of the image's dtype.
    """
    made = np.empty_like(image)
    for band, (black, white) in enumerate(limits):
        values = image[..., band].astype(np.float64)
        step = max(white - black, 1e-12) / 255
        grey = ((values - black) / step).round().clip(0, 255).astype(np.uint8)
        drawn = f"{name} {band}" if corruption in GROUPS["noise"] else name
        rgb = np.repeat(grey[..., None], 3, 2)
        changed = corrupt(rgb, corruption, severity, name=drawn, seed=seed)[..., 0]
        values = values + (changed.astype(np.float64) - grey) * step
        if image.dtype == np.uint8:
            values = values.round().clip(0, 255)
        made[..., band] = values
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the library draws from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@TRANSFORMS.register_module()
class CorruptImage(BaseTransform):
    """Corrupt `img`, (H, W, 3) BGR as LoadImage returns it; boxes and labels stay unchanged.

    Images of other bands are corrupted band by band; see `corrupt_bands`.

    Args:
        corruption: a name of `CORRUPTIONS`; None leaves images unchanged, as severity 0 does.
        severity: 0 to 5.
        seed: seed of the draws, together with the image's file name.
        limits: the values of each band that stand for black and white; empty for 8-bit RGB.

    Raises:
        InputError: an image is smaller than 32 pixels, or without limits not 8-bit RGB.
    """

    def __init__(
        self,
        corruption: str | None = None,
        severity: int = 0,
        seed: int = 0,
        limits: Sequence[tuple[float, float]] = (),
    ):
        self.corruption = corruption
        self.severity = severity
        self.seed = seed
        self.limits = tuple(limits)

    def transform(self, results: dict) -> dict:
        """Corrupt the image of one sample."""
        if self.corruption is None or self.severity == 0:
            return results
        image, path = results["img"], Path(results["img_path"])
        if not self.limits and (image.dtype != np.uint8 or image.shape[2:] != (3,)):
            raise InputError(
                f"{path}: the corruptions are defined for 8-bit RGB, the image is "
                f"{image.dtype} of {image.shape[2]} bands",
                code="unsupported",
                where=path,
            )
        if min(image.shape[:2]) < LEAST_SIDE:
            height, width = image.shape[:2]
            raise InputError(
                f"{path}: {width}x{height} pixels, but corruptions need {LEAST_SIDE} per side; "
                "remove it from the data set",
                code="unsupported",
                where=path,
            )
        if self.limits:
            results["img"] = corrupt_bands(
                image, self.corruption, self.severity, self.limits, name=path.name, seed=self.seed
            )
            return results
        rgb = np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)
        rgb = corrupt(rgb, self.corruption, self.severity, name=path.name, seed=self.seed)
        results["img"] = np.ascontiguousarray(rgb[..., ::-1], dtype=image.dtype)
        return results


def choose_corruptions(config: Config, named: Sequence[str] | None) -> tuple[str, ...]:
    """Return the corruptions to measure: those named, or all that are defined for the images.

    Raises:
        InputError: one that is named is defined for 8-bit RGB, and the model reads other bands.
    """
    if loaded_bands(config.test_dataloader.dataset.get("pipeline")) is None:
        return tuple(named or CORRUPTIONS)
    for name in named or ():
        if name in COLOUR_ONLY:
            raise InputError(
                f"--corruptions {name}: is defined for 8-bit RGB, and this model reads other "
                f"bands; leave out {', '.join(COLOUR_ONLY)}",
                code="unsupported",
                where=name,
            )
    return tuple(named or (name for name in CORRUPTIONS if name not in COLOUR_ONLY))


def insert_corruption(config: Config, seed: int) -> None:
    """Insert an inactive `CorruptImage` after the loading of the test images.

    Raises:
        InputError: the test pipeline does not load images by LoadImage.
    """
    dataset = config.test_dataloader.dataset
    meta = dict((dataset.get("metainfo") or {}).get("bands") or {})
    pairs = zip(meta.get("mean") or (), meta.get("std") or (), strict=True)
    limits = [(mean - SPAN * std, mean + SPAN * std) for mean, std in pairs]
    kinds = [str(step.get("type")) for step in dataset.get("pipeline") or []]
    for i, kind in enumerate(kinds):
        if kind in ("LoadImage", "LoadImageFromFile"):
            step = dict(type="CorruptImage", seed=seed, **({"limits": limits} if limits else {}))
            dataset.pipeline = [*dataset.pipeline[: i + 1], step, *dataset.pipeline[i + 1 :]]
            return
    raise InputError(
        f"{config.filename}: test_dataloader.dataset.pipeline has no LoadImage to corrupt images "
        "after; give the config of a detector or segmentor",
        code="unsupported",
        where="test_dataloader.dataset.pipeline",
    )
