"""Check each batch's labels against the decode head's classes."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from backbones.errors import InputError


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stop at the first label map with a value beyond the decode head's classes.

    Cross entropy would fail somewhere on the GPU without naming the file, and mmseg's IoUMetric
    would drop the pixels and report a score nevertheless. A map or crop whose pixels are all
    ignored passes: it weighs nothing.

    Raises:
        InputError: names the file, the value and the number of classes.
    """

    priority = "VERY_HIGH"

    def _check(self, runner: Runner, data_batch: dict | None) -> None:
        model: Any = runner.model
        model = model.module if is_model_wrapper(model) else model
        head: Any = getattr(model, "module", model).decode_head  # a TTA model holds the segmentor
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        for sample in (data_batch or {}).get("data_samples", ()):
            sample = sample[0] if isinstance(sample, list) else sample
            if "gt_sem_seg" not in sample:
                continue
            labels = sample.gt_sem_seg.data
            labels = labels[labels != head.ignore_index]
            if labels.numel() and (highest := int(labels.amax())) >= head.num_classes:
                path = sample.get("seg_map_path") or sample.get("img_path")
                raise InputError(
                    f"{path}: holds label {highest}, the model has {head.num_classes} classes (0 "
                    f"to {head.num_classes - 1}, {head.ignore_index} is ignored); check "
                    "num_classes and reduce_zero_label",
                    code="bad-labels",
                    where=path,
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check(runner, data_batch)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check(runner, data_batch)

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check(runner, data_batch)
