"""Check each batch's labels against the decode head's classes, where the batch is put together."""

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from backbones.errors import LabelBeyondClasses
from backbones.openmmlab.mmengine_internals import restart_batches


class CheckedLabels:
    """Collate samples as another function does, and check the label maps among them.

    DataLoader workers call it, so that the process that trains does not read every label again.

    Args:
        collate: function that makes a batch of a list of samples.
        classes: the number of classes.
        ignore_index: label that belongs to no class.

    Raises:
        LabelBeyondClasses: a label is beyond the classes; the text names file and value.
    """

    def __init__(self, collate: Callable[[list], Any], classes: int, ignore_index: int):
        self.collate, self.classes, self.ignore_index = collate, classes, ignore_index

    def __call__(self, samples: list) -> Any:
        for sample in samples:
            found = sample.get("data_samples") if isinstance(sample, dict) else None
            for each in found if isinstance(found, list) else [found]:  # views of one image
                self._check(each)
        return self.collate(samples)

    def _check(self, sample: Any) -> None:
        if sample is None or "gt_sem_seg" not in sample:
            return
        labels = sample.gt_sem_seg.data
        if labels.numel() and int(labels.amax()) < self.classes:
            return  # the usual case, without a copy of the labelled pixels
        labels = labels[labels != self.ignore_index]
        if labels.numel() and (highest := int(labels.amax())) >= self.classes:
            path = sample.get("seg_map_path") or sample.get("img_path")
            raise LabelBeyondClasses(
                f"{path}: holds label {highest}, the model has {self.classes} classes (0 "
                f"to {self.classes - 1}, {self.ignore_index} is ignored); check "
                "num_classes and reduce_zero_label",
                where=path,
            )


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stop at the first label map with a value beyond the decode head's classes.

    Cross entropy would fail somewhere on the GPU without naming the file, and mmseg's IoUMetric
    would drop the pixels and report a score nevertheless. A map or crop whose pixels are all
    ignored passes: it weighs nothing.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        self._check_labels_of(runner.train_loop, runner.model)

    def before_val(self, runner: Runner) -> None:
        self._check_labels_of(runner.val_loop, runner.model)

    def before_test(self, runner: Runner) -> None:
        self._check_labels_of(runner.test_loop, runner.model)

    def _check_labels_of(self, loop: Any, model: Any) -> None:
        """Make a loop's DataLoader check labels, before its workers start."""
        loader: DataLoader = loop.dataloader
        if isinstance(loader.collate_fn, CheckedLabels):
            return
        model = model.module if is_model_wrapper(model) else model
        head: Any = getattr(model, "module", model).decode_head  # a TTA model holds the segmentor
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        loader.collate_fn = CheckedLabels(loader.collate_fn, head.num_classes, head.ignore_index)
        restart_batches(loop)  # of a DataLoader object: its workers have the former function
