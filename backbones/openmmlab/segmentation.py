"""What a segmentation config needs registered: mmseg, our loading, a linear head, a label check."""

from .registration import register

register("mmseg")

from mmcv.cnn import build_norm_layer  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.registry import HOOKS, MODELS  # noqa: E402
from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from backbones.errors import InputError  # noqa: E402

from . import loading, pairs  # noqa: E402, F401


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Dropout, normalisation and one 1x1 convolution on one map, to probe a frozen backbone.

    DINOv3's linear segmentation (arXiv:2508.10104, facebookresearch/dinov3, eval/segmentation).

    Args:
        in_channels: channels of the map, the last one unless `in_index` names another.
        norm_cfg: the normalisation; None leaves it out.
        num_classes, dropout_ratio, in_index and the rest: as in mmseg's decode heads.
    """

    def __init__(self, in_channels: int, *, norm_cfg: dict | None = None, **kwargs):
        super().__init__(in_channels, channels=in_channels, norm_cfg=norm_cfg, **kwargs)
        self.norm = build_norm_layer(norm_cfg, in_channels)[1] if norm_cfg else nn.Identity()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits (N, num_classes, H, W) of the map (N, in_channels, H, W)."""
        x = self._transform_inputs(inputs)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv_seg(self.norm(x))


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
