"""Classify images: a network, mixup and CutMix, and timm's losses."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import LabelData
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from backbones.errors import InputError


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Train a network to classify images with one label each.

    Args:
        network: config of a module that takes `num_classes` and turns images (N, 3, H, W) into
            logits (N, num_classes), such as `ConvNeXtClassifier`.
        num_classes: number of classes; passed to the network.
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha, cutmix_alpha: parameters of the beta distributions of mixup and CutMix, 0
            disables them; with both, each batch gets either with equal probability. Pairs are
            formed within a rank's batch, which has to be even.
        data_preprocessor: mmengine's; by default batches are only moved to the model's device.

    Raises:
        InputError: the network's config has a num_classes of its own.
    """

    def __init__(
        self,
        network: dict,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        data_preprocessor: dict | None = None,
        init_cfg: Any = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        if "num_classes" in network:
            raise InputError(
                "config key model.network.num_classes: set model.num_classes instead",
                code="bad-config",
                where="model.network.num_classes",
            )
        self.network = MODELS.build({**network, "num_classes": num_classes})
        self.mixup = None
        self.criterion = LabelSmoothingCrossEntropy(label_smoothing)
        if mixup_alpha or cutmix_alpha:
            self.mixup = Mixup(
                mixup_alpha,
                cutmix_alpha,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
            self.criterion = SoftTargetCrossEntropy()

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        img_path: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[LabelData]:
        """Return logits, losses or predictions, as mmengine's runner requests.

        Args:
            inputs: normalised images (N, 3, H, W).
            labels: (N,) int64, for `loss`.
            img_path: where the images come from, unused.
            mode: `tensor` for logits (N, num_classes), `loss` for dict(loss=...), `predict` for a
                sample of each image with `scores` (num_classes,), `label` (1,) and, where labels
                are given, `gt_label` (1,).
        """
        if mode == "loss":
            return self.loss(inputs, labels)
        logits = self.network(inputs)
        if mode == "tensor":
            return logits
        samples = samples_of(labels, len(logits))
        return [classified(sample, row) for sample, row in zip(samples, logits, strict=True)]

    def loss(self, inputs: Tensor, labels: Any) -> dict[str, Tensor]:
        """Return the loss of a batch, mixed first if the config asks for it.

        Raises:
            InputError: an odd number of images, which cannot be paired.
        """
        if self.mixup is None:
            return dict(loss=self.criterion(self.network(inputs), labels))
        if len(inputs) % 2:
            raise InputError(
                f"a batch of {len(inputs)} images cannot be mixed in pairs: give "
                "train_dataloader an even batch_size and drop_last=True",
                code="bad-value",
                where="train_dataloader.batch_size",
            )
        inputs, targets = self.mixup(inputs, labels)
        return dict(loss=self.criterion(self.network(inputs), targets))


def samples_of(labels: Tensor | Sequence[int] | None, count: int) -> list[LabelData]:
    """Return a sample for each image of a batch, with its true class in `gt_label` if there is one.

    Args:
        labels: a label for each image, or None.
        count: number of images.
    """
    if labels is None:
        return [LabelData() for _ in range(count)]
    return [LabelData(gt_label=torch.as_tensor(label).reshape(1)) for label in labels]


def classified(sample: LabelData, logits: Tensor) -> LabelData:
    """Set the scores and the predicted label of an image from its logits (num_classes,)."""
    scores = logits.float().softmax(dim=0)
    sample.set_data(dict(scores=scores, label=scores.argmax(0, keepdim=True)))
    return sample
