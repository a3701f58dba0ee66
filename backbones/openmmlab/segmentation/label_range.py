"""A check of each batch's labels against the decode head's classes."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from backbones.errors import InputError


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stops at the first label map with a value that the decode head has no class for.

    Cross entropy would fail somewhere on the GPU without naming the file, and mmseg's IoUMetric
    would drop the pixels and report a score all the same.

    Raises:
        InputError: names the file, the value and the number of classes.
    """

    priority = "VERY_HIGH"

    def _check(self, runner, data_batch: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = getattr(model, "module", model).decode_head  # a TTA model holds the segmentor
        for sample in data_batch["data_samples"]:
            sample = sample[0] if isinstance(sample, list) else sample
            if "gt_sem_seg" not in sample:
                continue
            labels = sample.gt_sem_seg.data
            highest = labels[labels != head.ignore_index].amax() if labels.numel() else 0
            if highest >= head.num_classes:
                raise InputError(
                    f"{sample.get('seg_map_path', sample.img_path)}: holds label {int(highest)}, "
                    f"the model has {head.num_classes} classes (0 to {head.num_classes - 1}, "
                    f"{head.ignore_index} is ignored); check num_classes and reduce_zero_label"
                )

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner, data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner, data_batch)

    def before_test_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner, data_batch)
