"""Compare the logits or labels of an exported file with mmseg's own whole-image inference."""

from collections.abc import Sequence
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
        labels = F.interpolate(outputs[0].double(), sample.ori_shape[:2], mode="nearest-exact")
        sample.pred_sem_seg = PixelData(data=labels[0].long())
        return sample
