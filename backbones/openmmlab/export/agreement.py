"""What an exported file says against what the model says, on images of the data set."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from backbones.errors import InputError

from .files import Run

# Scores that are held against each other, in [0, 1] or, mmseg's, in per cent.
SCORES = {"coco/bbox_mAP": 1.0, "coco/segm_mAP": 1.0, "mIoU": 100.0}
NEAR = 0.005  # of the image's longer side: corners of one detection's boxes
# Times the tolerance: share of detections that may differ. Rounding decides between nearly equal
# scores, and what suppression then keeps instead changes a whole cluster; AP is held by itself.
CLUSTERS = 5
Outputs = Sequence[Tensor]


class Differences(NamedTuple):
    """Of one image's outputs; see `Agreement`."""

    largest: dict[str, float]
    detections: int = 0
    unpaired: int = 0


@dataclass
class Agreement:
    """How far an exported file is from the model it was made of.

    Attributes:
        images: how many were compared.
        differences: the largest difference by what was compared, each relative to its range: maps
            and logits to the largest magnitude, boxes to the image's longer side, scores and masks
            to 1, labels as the share of pixels.
        detections: how many the model or the file found, whichever found more.
        unpaired: how many of them only one of the two found.
        scores: of the model and of the file, by metric, on these images alone.
        finite: whether no output was infinite or not a number.
    """

    images: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    detections: int = 0
    unpaired: int = 0
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    finite: bool = True

    def add(self, largest: dict[str, float], detections: int = 0, unpaired: int = 0) -> None:
        """Take over one image's `Differences`."""
        self.images += 1
        self.detections += detections
        self.unpaired += unpaired
        for name, value in largest.items():
            self.differences[name] = max(value, self.differences.get(name, 0.0))

    def problem(self, tolerance: float) -> str:
        """What is beyond the tolerance, in one phrase; empty if nothing is."""
        if not self.finite:
            return "an output is infinite or not a number"
        for name, value in self.differences.items():
            if not value <= tolerance:
                return f"{name} differ by {value:.2g}"
        if self.unpaired > CLUSTERS * tolerance * self.detections:
            return f"{self.unpaired} of {self.detections} detections differ"
        for name, (model, file) in self.scores.items():
            if abs(model - file) > tolerance * SCORES[name]:
                return f"{name} is {file:.4g}, the model's {model:.4g}"
        return ""

    def lines(self) -> Iterator[str]:
        """The report, a line for each figure."""
        yield f"compared on {self.images} images of the data set:"
        for name, value in self.differences.items():
            yield f"  largest difference of {name}: {value:.3g}"
        if self.detections:
            yield f"  detections of one and not the other: {self.unpaired} of {self.detections}"
        for name, (model, file) in self.scores.items():
            yield f"  {name}: model {model:.4f}, file {file:.4f}, change {file - model:+.4f}"

    def as_json(self) -> dict:
        """Plain data."""
        return dict(
            images=self.images,
            largest_differences=self.differences,
            detections=self.detections,
            unpaired=self.unpaired,
            scores={k: dict(model=m, file=f, change=f - m) for k, (m, f) in self.scores.items()},
        )


class Images:
    """Some images of a config's test set, evenly spread, and its evaluator.

    Raises:
        InputError: the data set is empty.
    """

    def __init__(self, config: Config, count: int):
        self._config = config
        self.dataset = DATASETS.build(config.test_dataloader.dataset)
        if not len(self.dataset):
            raise InputError(f"{config.filename}: its test set holds no images")
        chosen = np.linspace(0, len(self.dataset) - 1, min(count, len(self.dataset)))
        self.indices = sorted(set(chosen.round().astype(int).tolist()))
        collate = config.test_dataloader.get("collate_fn", dict(type="pseudo_collate"))
        self._collate = FUNCTIONS.get(collate["type"])

    def __iter__(self) -> Iterator[dict]:
        """Batches of one image as the test loader makes them, new ones each time."""
        for index in self.indices:
            yield self._collate([self.dataset[index]])

    def evaluate(self, samples: Sequence[BaseDataElement]) -> dict[str, float]:
        """The config's metrics of predictions for these images, and for no others."""
        evaluator = Evaluator(self._config.test_evaluator)
        evaluator.dataset_meta = self.dataset.metainfo
        for metric in evaluator.metrics:
            if hasattr(metric, "img_ids"):  # COCO's would count all images of the file as missed
                metric.img_ids = [sample.img_id for sample in samples]
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("WARNING")  # the metrics print tables
        try:
            with redirect_stdout(io.StringIO()):
                for sample in samples:
                    evaluator.process([sample])
                found = evaluator.evaluate(len(samples))
        finally:
            logger.setLevel(level)
        return {name: float(found[name]) for name in SCORES if name in found}


class DetectorAgreement:
    """Detections of mmdet's own prediction against those of a file."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.config = model.roi_head.test_cfg

    def reference(self, batch: dict) -> Outputs:
        """What the model finds, as `DetectorGraph` returns it: by mmdet's methods, unchanged."""
        from mmdet.structures.bbox import bbox2roi  # registered by the config alone

        batch = self.model.data_preprocessor(batch, False)
        samples = batch["data_samples"]
        metas = [sample.metainfo for sample in samples]
        maps = self.model.extract_feat(batch["inputs"])
        proposals = self.model.rpn_head.predict(maps, samples, rescale=False)
        head = self.model.roi_head
        (found,) = head.predict_bbox(maps, metas, proposals, self.config, rescale=False)
        outputs = [torch.cat([found.bboxes, found.scores[:, None]], 1)[None], found.labels[None]]
        if head.with_mask and len(found):
            rois = bbox2roi([found.bboxes])
            outputs.append(head.mask_probabilities(maps, rois, found.labels)[None])
        elif head.with_mask:
            outputs.append(found.bboxes.new_zeros(1, 0, 28, 28))
        return outputs

    def differences(self, reference: Outputs, outputs: Outputs, batch: dict) -> Differences:
        """Of detections of one class and nearly one place; the others of the side with more."""
        longer = max(batch["inputs"][0].shape[-2:])
        one, other = (
            [x[0].double() for x in (found[0][..., :4] / longer, found[0][..., 4], *found[1:])]
            for found in (reference, outputs)
        )
        pairs = _pairs(one, other)
        found = {}
        for name, index in (("boxes", 0), ("scores", 1), ("masks", 3)):
            if index < len(one):
                apart = (one[index][pairs[:, 0]] - other[index][pairs[:, 1]]).abs()
                found[name] = float(apart.max()) if apart.numel() else 0.0
        unpaired = 0
        for side, scores in enumerate((one[1], other[1])):
            left = torch.ones(len(scores), dtype=torch.bool)
            left[pairs[:, side]] = False
            unpaired = max(unpaired, int((left & (scores > self._margin(scores))).sum()))
        return Differences(found, max(len(one[1]), len(other[1])), unpaired)

    def _margin(self, scores: Tensor) -> float:
        """Scores down to here may be in one list and not in the other by rounding alone."""
        least = self.config.score_thr
        if len(scores) == self.config.max_per_img:
            least = max(least, float(scores.min()))
        return least * 1.01

    def sample(self, outputs: Outputs, batch: dict) -> BaseDataElement:
        """The data sample that the evaluator takes, in pixels of the original image."""
        sample = batch["data_samples"][0].clone()
        boxes = outputs[0][0, :, :4] / outputs[0].new_tensor([*sample.scale_factor] * 2)
        found = InstanceData(bboxes=boxes, scores=outputs[0][0, :, 4], labels=outputs[1][0])
        if len(outputs) > 2:
            found.masks = self.model.roi_head.last_mask_head.paste(
                outputs[2][0], boxes, sample.ori_shape[:2], self.config.mask_thr_binary
            )
        sample.pred_instances = found
        return sample


class SegmentorAgreement:
    """Logits or labels of mmseg's own whole-image inference against those of a file."""

    def __init__(self, model: nn.Module, logits: bool):
        self.model = model
        self.logits = logits

    def reference(self, batch: dict) -> Outputs:
        """What the model says of the whole image, as `SegmentorGraph` returns it."""
        batch = self.model.data_preprocessor(batch, False)
        metas = [sample.metainfo for sample in batch["data_samples"]]
        logits = self.model.encode_decode(batch["inputs"], metas)
        if self.logits:
            return [logits]
        if logits.shape[1] == 1:
            return [(logits.sigmoid() > self.model.decode_head.threshold).long()]
        return [logits.argmax(1, keepdim=True)]

    def differences(self, reference: Outputs, outputs: Outputs, batch: dict) -> Differences:
        """Of logits relative to their largest magnitude; of labels the share of pixels."""
        (one,), (other,) = reference, outputs
        if self.logits:
            return Differences({"logits": _relative(one, other)})
        return Differences({"labels": float((one != other).double().mean())})

    def sample(self, outputs: Outputs, batch: dict) -> BaseDataElement:
        """The data sample that the evaluator takes; a label map is resized by nearest labels."""
        sample = batch["data_samples"][0].clone()
        if self.logits:
            return self.model.postprocess_result(outputs[0], [sample])[0]
        labels = F.interpolate(outputs[0].double(), sample.ori_shape[:2], mode="nearest-exact")
        sample.pred_sem_seg = PixelData(data=labels[0].long())
        return sample


class BackboneAgreement:
    """Feature maps, and what the rest of the model makes of them."""

    def __init__(self, model: nn.Module):
        self.model = model

    def reference(self, batch: dict) -> Outputs:
        """The model's own feature maps."""
        return self.model.backbone(self.model.data_preprocessor(batch, False)["inputs"])

    def differences(self, reference: Outputs, outputs: Outputs, batch: dict) -> Differences:
        """Of each map, relative to its largest magnitude."""
        pairs = zip(self.model.backbone.out_indices, reference, outputs, strict=True)
        return Differences({f"map{i}": _relative(one, other) for i, one, other in pairs})


class FileBackbone(nn.Module):
    """A backbone whose maps a file computes, to be put in the place of the model's own."""

    def __init__(self, run: Run, preprocessing: nn.Module):
        super().__init__()
        self.run = run
        self.preprocessing = preprocessing

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of normalised images: they are turned back, as the file normalises them itself."""
        images = x * self.preprocessing.std + self.preprocessing.mean
        if self.preprocessing.swaps:
            images = images.flip(1)
        return tuple(map(torch.from_numpy, self.run(images.contiguous().numpy())))


@torch.inference_mode()
def compare(
    comparison: DetectorAgreement | SegmentorAgreement | BackboneAgreement, images: Images, run: Run
) -> Agreement:
    """Run the model and the file on the images and score both.

    A backbone's file is scored in the model, in the place of its own backbone.
    """
    agreement = Agreement()
    model_samples, file_samples = [], []
    for batch in images:
        raw = batch["inputs"][0][None].float().numpy()
        outputs = [torch.from_numpy(np.asarray(x)) for x in run(raw)]
        agreement.finite &= all(bool(x.isfinite().all()) for x in outputs)
        reference = comparison.reference(batch)
        agreement.add(*comparison.differences(reference, outputs, batch))
        if hasattr(comparison, "sample"):
            model_samples.append(comparison.sample(reference, batch))
            file_samples.append(comparison.sample(outputs, batch))
    if model_samples and agreement.finite:
        model, file = images.evaluate(model_samples), images.evaluate(file_samples)
        agreement.scores = {name: (model[name], file[name]) for name in model}
    return agreement


@torch.inference_mode()
def score_in_model(
    model: nn.Module, images: Images, backbone: nn.Module
) -> dict[str, tuple[float, float]]:
    """Scores of the model with its own backbone and with another in its place."""
    found = []
    for own in (True, False):
        kept = model.backbone
        model.backbone = kept if own else backbone
        try:
            samples = [model.test_step(batch)[0] for batch in images]
        finally:
            model.backbone = kept
        found.append(images.evaluate(samples))
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def _relative(reference: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest magnitude; infinite for another shape."""
    if reference.shape != other.shape:
        return float("inf")
    apart = (reference.double() - other.double()).abs().max()
    return float(apart / reference.abs().max().clamp(min=1e-12))


def _pairs(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """(n, 2) indices of detections of one label and, within `NEAR`, one place, each used once.

    Args:
        one, other: boxes (n, 4) relative to the image, scores (n,), labels (n,) and what more.
    """
    if not len(one[0]) or not len(other[0]):
        return torch.zeros(0, 2, dtype=torch.long)
    apart = torch.cdist(one[0], other[0], p=float("inf"))
    belong = (apart < NEAR) & (one[2][:, None] == other[2])
    apart = apart + (one[1][:, None] - other[1]).abs()
    apart[~belong] = float("inf")
    pairs = []
    for i, row in enumerate(apart):
        best = int(row.argmin())
        if row[best].isfinite():
            pairs.append((i, best))
            apart[:, best] = float("inf")
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)
