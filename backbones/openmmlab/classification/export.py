"""Express a classifier as a function of images, and compare a file of it with the classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from backbones.openmmlab.export.differences import Differences, relative_difference
from backbones.openmmlab.tasks import Sample

from .model import classified, samples_of


class ClassifierGraph(nn.Module):
    """Compute logits (N, classes) of images as the test pipeline normalises them."""

    inputs = {"input": {0: "batch", 2: "height", 3: "width"}}
    outputs = ("logits",)

    def __init__(self, preprocessing: nn.Module, model: Any):
        super().__init__()
        self.preprocessing = preprocessing
        self.model = model

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (self.model.network(self.preprocessing(input)).float(),)


class ClassifierComparison:
    """Compare a file's logits with the classifier's own.

    Args:
        model: an ImageClassifier.
    """

    def __init__(self, model: Any):
        self.model = model

    def reference(self, batch: dict) -> list[Tensor]:
        """Return the classifier's own logits."""
        return [self.model(**self.model.data_preprocessor(batch, False))]

    def differences(
        self, reference: Sequence[Tensor], outputs: Sequence[Tensor], batch: dict
    ) -> Differences:
        """Measure the logits relative to their largest magnitude."""
        (one,), (other,) = reference, outputs
        return Differences({"logits": relative_difference(one, other)})

    def sample(self, outputs: Sequence[Tensor], batch: dict) -> Sample:
        """Return the data sample that the evaluator takes."""
        return exported_sample(outputs, blank_samples(batch)[0], {})


def blank_samples(batch: dict) -> list[Sample]:
    """Return a sample for each image of a batch, which holds its label if the data have one."""
    return samples_of(batch.get("labels"), len(batch["inputs"]))


def exported_sample(outputs: Sequence[Tensor], sample: Sample, settings: Mapping) -> Sample:
    """Set a sample's scores and label from a file's logits; `settings` are empty."""
    return classified(sample, outputs[0][0])
