"""Compare the detections of an exported file with those of mmdet's own prediction."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from backbones.openmmlab.export.differences import Differences
from backbones.openmmlab.tasks import Sample

from .roi_heads import paste_masks

NEAR = 0.005  # of the image's longer side: corners of one detection's boxes


class DetectorComparison:
    """Compare a file's detections with those that mmdet's own methods predict.

    Args:
        model: detector with the heads of Mask R-CNN or Cascade Mask R-CNN.
    """

    def __init__(self, model: Any):
        self.model = model
        self.config = model.roi_head.test_cfg

    def reference(self, batch: dict) -> list[Tensor]:
        """Return the detections of mmdet's unchanged methods, in the form of `DetectorGraph`."""
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

    def differences(
        self, reference: Sequence[Tensor], outputs: Sequence[Tensor], batch: dict
    ) -> Differences:
        """Pair detections of one class at nearly one place; count those without a counterpart."""
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
        """Return the score below which rounding alone may drop a detection from a list."""
        least = self.config.score_thr
        if len(scores) == self.config.max_per_img:
            least = max(least, float(scores.min()))
        return least * 1.01

    def sample(self, outputs: Sequence[Tensor], batch: dict) -> Sample:
        """Return the data sample that the evaluator takes, in pixels of the original image."""
        sample = batch["data_samples"][0].clone()
        return exported_sample(outputs, sample, export_settings(self.model))


def export_settings(model: Any) -> dict:
    """Return what `exported_sample` needs to know of a detector."""
    return dict(mask_threshold=float(model.roi_head.test_cfg.get("mask_thr_binary", 0.5)))


def exported_sample(outputs: Sequence[Tensor], sample: Sample, settings: Mapping) -> Sample:
    """Set a sample's detections from a file's outputs, in pixels of the original image.

    Args:
        outputs: those of `DetectorGraph`.
        sample: has the image's `ori_shape` and `scale_factor`.
        settings: those of `export_settings`.
    """
    boxes = outputs[0][0, :, :4] / outputs[0].new_tensor([*sample.scale_factor] * 2)
    found = InstanceData(bboxes=boxes, scores=outputs[0][0, :, 4], labels=outputs[1][0])
    if len(outputs) > 2:
        found.masks = paste_masks(
            outputs[2][0], boxes, sample.ori_shape[:2], settings["mask_threshold"]
        )
    sample.pred_instances = found
    return sample


def _pairs(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Pair detections of one label and, within `NEAR`, one place; each is used once.

    Args:
        one, other: boxes (n, 4) relative to the image, scores (n,), labels (n,) and any others.

    Returns:
        (k, 2) indices into `one` and `other`.
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
