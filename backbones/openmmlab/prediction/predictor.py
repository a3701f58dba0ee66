"""Predict images with a trained model."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import FUNCTIONS, MODELS

from backbones.errors import InputError
from backbones.openmmlab.config.loading import inference_dtype, load_config
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.config.names import published_model
from backbones.openmmlab.data.band_pipelines import loaded_bands, refuse_colour_transforms
from backbones.openmmlab.data.bands import composite, read_bands
from backbones.openmmlab.data.decoding import read_image
from backbones.openmmlab.data.metainfo import dataset_metainfo
from backbones.openmmlab.mmengine_internals import safe_checkpoint_loading
from backbones.openmmlab.precision import inference_autocast, set_tf32
from backbones.openmmlab.registration import enter_scope
from backbones.openmmlab.tasks import Sample, task_of
from backbones.weights import load_strictly, read_checkpoint

from .exported import ExportedModel, is_exported
from .result import Result


class Predictor:
    """Predict images with a trained detector, segmentor or classifier.

    Args:
        config: config file, the name of one of the suite's configs or of a published model
            (`cascade_convnext_t`, `cascade_convnext_t.openmmlab`), a config already read, or a file
            that `convnext export` wrote of a whole model (.onnx, .xml, .pt2), without a checkpoint.
        checkpoint: the whole model's weights, anything `read_checkpoint` reads; None takes those
            published for the config, downloaded once.
        device: where to run; None takes a GPU if there is one.

    Attributes:
        task: "detection", "segmentation" or "classification".
        model: the module, in evaluation mode, or an `ExportedModel`.
        steps: the configs of the test pipeline's steps, without annotations.
        classes: class names in the order of the labels.
        palette: (classes, 3) uint8 RGB of the data set, or None if it has none.
        bands: the bands of its images; None for 8-bit colour.

    Raises:
        InputError: the config or checkpoint cannot be read or do not belong together.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike | None = None,
        *,
        device: str | None = None,
    ):
        if checkpoint is None and is_exported(config):
            self._use_file(ExportedModel(Path(cast(str, config))), device)
            return
        if checkpoint is None:
            given = config.filename if isinstance(config, Config) else config
            if given is None:
                raise InputError("a config without a file needs a checkpoint", where="checkpoint")
            checkpoint = published_model(given).name
        self.config = config if isinstance(config, Config) else load_config(config)
        self.config.setdefault("launcher", "none")
        fit_to_machine(self.config)
        scope = self.config.get("default_scope", "mmengine")
        task = task_of(self.config)
        self.task = task.name
        enter_scope(scope)
        if self.config.get("test_dataloader") is None:
            raise InputError(
                f"{self.config.filename}: has no test_dataloader, whose pipeline prediction uses",
                code="bad-config",
                where="test_dataloader",
            )
        dataset = self.config.test_dataloader.dataset
        metainfo = dataset_metainfo(dataset, scope)
        if "classes" not in metainfo:
            raise InputError(
                f"{self.config.filename}: test_dataloader.dataset has no class names",
                code="bad-config",
                where="test_dataloader.dataset",
            )
        self.classes = tuple(metainfo["classes"])
        palette = metainfo.get("palette")
        self.palette = None if palette is None else np.array(palette, dtype=np.uint8)

        set_tf32(self.config.get("env_cfg"))
        with safe_checkpoint_loading():
            self.model: Any = MODELS.build(self.config.model)
        load_strictly(self.model, read_checkpoint(checkpoint), checkpoint)
        self.model.to(device or get_device()).eval()
        self._dtype = inference_dtype(self.config)

        steps = [s for s in dataset.pipeline if "LoadAnnotations" not in s["type"]]
        collate = self.config.test_dataloader.get("collate_fn", dict(type="pseudo_collate"))
        self._use_pipeline(steps, task.array_loader, collate["type"])

    def _use_file(self, exported: ExportedModel, device: str | None) -> None:
        """Take everything from an exported file."""
        if device not in (None, "cpu"):
            raise InputError(
                f"--device {device}: exported files run on the CPU here", where="--device"
            )
        self.config = Config(dict(default_scope=exported.scope))
        self.task, self.classes, self.palette = exported.task, exported.classes, exported.palette
        self.model, self._dtype = exported, torch.float32
        enter_scope(exported.scope)
        loader = task_of(self.config).array_loader
        self._use_pipeline(exported.pipeline, loader, "pseudo_collate")

    def _use_pipeline(self, steps: list[dict], array_loader: str, collate: str) -> None:
        """Build the test pipeline for files and for arrays."""
        self.steps = steps
        refuse_colour_transforms(steps, "test_dataloader.dataset.pipeline")
        self.bands = loaded_bands(steps)
        self._from_file = Compose(steps)
        loader = dict(type=array_loader)
        if self.bands is not None or steps[0]["type"] == "LoadRGB":  # which take arrays too
            loader = steps[0]
        self._from_array = Compose([loader, *steps[1:]])
        self.collate = cast(Callable[[list], dict], FUNCTIONS.get(collate))

    def __call__(self, image: str | os.PathLike | np.ndarray) -> Result:
        """Predict one image.

        Args:
            image: a file, or (H, W, 3) uint8 in BGR order as OpenCV reads it; of a model of other
                bands (H, W, bands) as `read` returns it.

        Returns:
            A result that can be drawn and saved (`save`). It has `pred_instances` (bboxes in
            pixels of the image, scores, labels, masks (n, H, W)) from a detector, `pred_sem_seg`
            (1, H, W) from a segmentor, `scores` (classes,) and `label` (1,) from a classifier.
        """
        shown = image
        if self.bands is not None:
            image = image if isinstance(image, np.ndarray) else self.read(Path(image))
            shown = self.picture(image)
        (sample,) = self.batch([image])
        return Result(shown, sample, self.classes, self.palette)

    @torch.inference_mode()
    def batch(self, images: Sequence[str | os.PathLike | np.ndarray]) -> list[Sample]:
        """Predict several images, in batches of equal network input size.

        Padding to a common size would change the results.
        """
        groups: dict[tuple[int, ...], list[tuple[int, dict]]] = {}
        for i, image in enumerate(images):
            packed = self.packed(image)
            groups.setdefault(tuple(packed["inputs"].shape), []).append((i, packed))
        samples = {}
        for group in groups.values():
            found = self.predict([packed for _, packed in group])
            samples.update(zip((i for i, _ in group), found, strict=True))
        return [samples[i] for i in range(len(images))]

    def predict(self, packed: Sequence[dict]) -> list[Sample]:
        """Predict images that `packed` returned, of one network input size."""
        return self.test_step(self.collate(list(packed)))

    @torch.inference_mode()
    def test_step(self, batch: dict) -> list[Sample]:
        """Predict a batch that the config's test loader would make."""
        with inference_autocast(self.model, self._dtype):
            return self.model.test_step(batch)

    def read(self, path: Path) -> np.ndarray:
        """Decode an image file as the config's pipeline does: `packed` takes it.

        Raises:
            UnreadableImage: it cannot be read, or is unlike the images of the training.
        """
        return read_image(path) if self.bands is None else read_bands(path, self.bands)[0]

    def of_frame(self, frame: np.ndarray, path: Path) -> np.ndarray:
        """Return a frame (H, W, 3) uint8 BGR of a video as `packed` takes it.

        Raises:
            UnreadableImage: the model reads other bands than red, green and blue of 8 bits.
        """
        return frame if self.bands is None else self.bands.of_frame(frame, path)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """Show a decoded image as (H, W, 3) uint8 BGR."""
        return image if self.bands is None else composite(image, self.bands)

    def packed(self, image: str | os.PathLike | np.ndarray) -> dict:
        """Run the config's pipeline on an image; return its `inputs` (bands, h, w) and metadata."""
        if isinstance(image, np.ndarray):
            packed = self._from_array(dict(img=image, img_path="array", img_id=0))
        else:
            packed = self._from_file(dict(img_path=str(Path(image)), img_id=0))
        return cast(dict, packed)

    @contextmanager
    def keeping_logits(self) -> Iterator[None]:
        """Make a segmentor's samples carry `seg_logits` (classes, H, W), as mmseg's always do."""
        kept = getattr(self.model, "keep_logits", None)
        self.model.keep_logits = True
        try:
            yield
        finally:
            if kept is None:
                del self.model.keep_logits
            else:
                self.model.keep_logits = kept
