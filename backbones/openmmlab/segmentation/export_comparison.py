"""Compare the logits or labels of an exported file with mmseg's own whole-image inference."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import Tensor

from backbones.openmmlab.export.differences import Differences, relative_difference
from backbones.openmmlab.tasks import Sample


class SegmentorComparison:
    """Compare a file's logits or labels with those that mmseg's own methods predict.

    Args:
        model: an EncoderDecoder.
        logits: whether the file returns logits instead of labels.
    """

    def __init__(self, model: Any, logits: bool):
        self.model = model
        self.logits = logits

    def reference(self, batch: dict) -> list[Tensor]:
        """Return the predictions of mmseg's unchanged methods, in the form of `SegmentorGraph`."""
        batch = self.model.data_preprocessor(batch, False)
        metas = [sample.metainfo for sample in batch["data_samples"]]
        logits = self.model.encode_decode(batch["inputs"], metas)
        if self.logits:
            return [logits]
        if logits.shape[1] == 1:
            return [(logits.sigmoid() > self.model.decode_head.threshold).long()]
        return [logits.argmax(1, keepdim=True)]

    def differences(
        self, reference: Sequence[Tensor], outputs: Sequence[Tensor], batch: dict
    ) -> Differences:
        """Measure logits relative to their largest magnitude, labels as the share of pixels."""
        (one,), (other,) = reference, outputs
        if self.logits:
            return Differences({"logits": relative_difference(one, other)})
        return Differences({"labels": float((one != other).double().mean())})

    def sample(self, outputs: Sequence[Tensor], batch: dict) -> Sample:
        """Return the data sample that the evaluator takes; labels are resized to the nearest."""
        sample = batch["data_samples"][0].clone()
        if self.logits:
            return self.model.postprocess_result(outputs[0], [sample])[0]
        return exported_sample(outputs, sample, export_settings(self.model))


def export_settings(model: Any) -> dict:
    """Return what `exported_sample` needs to know of a segmentor."""
    head = model.decode_head
    return dict(align_corners=bool(model.align_corners), threshold=getattr(head, "threshold", None))


def exported_sample(outputs: Sequence[Tensor], sample: Sample, settings: Mapping) -> Sample:
    """Set a sample's labels from a file's labels or logits, in pixels of the original image.

    Labels are resized to the nearest, logits bilinearly as mmseg resizes them.

    Args:
        outputs: those of `SegmentorGraph`.
        sample: has the image's `ori_shape`.
        settings: those of `export_settings`.
    """
    (found,), size = outputs, sample.ori_shape[:2]
    if not found.is_floating_point():
        labels = F.interpolate(found.double(), size, mode="nearest-exact")[0].long()
    else:
        align = settings["align_corners"]
        logits = F.interpolate(found, size, mode="bilinear", align_corners=align)[0]
        if len(logits) == 1:
            labels = (logits.sigmoid() > settings["threshold"]).long()
        else:
            labels = logits.argmax(0, keepdim=True)
        sample.seg_logits = PixelData(data=logits)
    sample.pred_sem_seg = PixelData(data=labels)
    return sample
