"""State which figures of a trained model are published, and how each of them is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backbones.errors import InputError
from backbones.weights import TRAINED, TrainedModel

# Published figures are rounded to a tenth, which explains 0.05; the rest is left to the decoding
# and resizing of images and to another order of the sums, which move some boxes and pixels.
TOLERANCE = 0.15
# Name in a trained model's scores: the evaluator's key, what its value is multiplied by for per
# cent, and whether it is measured with multi-scale and flip test-time augmentation.
MEASURES = {
    "box AP": ("coco/bbox_mAP", 100.0, False),
    "mask AP": ("coco/segm_mAP", 100.0, False),
    "mIoU": ("mIoU", 1.0, False),
    "mIoU multi-scale": ("mIoU", 1.0, True),
}
# Images of the sets that the figures are published for: COCO's val2017, ADE20K's validation.
IMAGES = {"detection": 5000, "segmentation": 2000}


@dataclass(frozen=True)
class Figure:
    """Hold a figure, in per cent.

    Attributes:
        name: a key of `MEASURES`.
        expected: the published value, or that of an earlier verdict; None if there is none.
        measured: the value measured here; None before it is.
    """

    name: str
    expected: float | None
    measured: float | None = None

    @property
    def multi_scale(self) -> bool:
        return MEASURES[self.name][2]

    @property
    def agrees(self) -> bool | None:
        """Return whether the two values agree within the tolerance; None if one is missing."""
        if self.expected is None or self.measured is None:
            return None
        return abs(self.measured - self.expected) <= TOLERANCE + 1e-9

    def measure(self, metrics: Mapping[str, float]) -> "Figure":
        """Return the figure with its value among an evaluator's metrics.

        Raises:
            InputError: the evaluator did not return it.
        """
        key, factor, _ = MEASURES[self.name]
        if key not in metrics:
            raise InputError(
                f"{self.name}: the evaluation returned no {key}; has the config's test_evaluator "
                "been changed?",
                code="bad-config",
                where=key,
            )
        return Figure(self.name, self.expected, round(factor * float(metrics[key]), 4))


def published_figures(model: TrainedModel) -> list[Figure]:
    """Return a model's published figures, not measured yet."""
    return [Figure(name, value) for name, value in model.scores.items()]


def tables_3_and_4() -> list[TrainedModel]:
    """Return the paper's own detectors (Table 3) and segmentors (Table 4)."""
    return [model for model in TRAINED if model.publisher == "official"]


def conclude(figures: Sequence[Figure], is_published_set: bool) -> str:
    """Return the verdict in a few words.

    Args:
        figures: all figures of a model.
        is_published_set: whether they were measured on the set that the scores are published for.
    """
    if any(figure.measured is None for figure in figures):
        return "incomplete"
    agree = [figure.agrees for figure in figures]
    if is_published_set:
        return "reproduced" if all(agree) else "not reproduced"
    if False in agree:
        return "a subset, no proof: differs from the expected figures"
    return "a subset, no proof" + (": agrees with the expected figures" if all(agree) else "")
