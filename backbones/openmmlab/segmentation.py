"""What a segmentation config needs registered: mmseg, our loading, heads and a label check."""

from .registration import register

register("mmseg")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from mmcv.cnn import ConvModule, build_norm_layer  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.registry import HOOKS, MODELS  # noqa: E402
from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from mmseg.models.decode_heads.uper_head import UPerHead  # noqa: E402
from mmseg.models.utils import resize  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402
from torch.nn.utils import fuse_conv_bn_weights  # noqa: E402

from backbones.errors import InputError  # noqa: E402
from backbones.ops.upsampled_conv import upsampled_conv2d  # noqa: E402
from backbones.ops.winograd_conv import conv3x3  # noqa: E402

from . import sliding_window  # noqa: E402, F401
from .data import loading, pairs  # noqa: E402, F401
from .evaluation import boundary, corruption  # noqa: E402, F401


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


@MODELS.register_module()
class FactorizedUPerHead(UPerHead):
    """UperNet's head (arXiv:1807.10221) with a third of the multiply-adds; the same function.

    Its two large convolutions over upsampled maps, the fusion of all levels and the bottleneck of
    the pyramid pooling, are computed at the maps' own sizes (`backbones.ops.upsampled_conv`).
    Without gradients batch norm is folded into each convolution's weights, as saved they stay.
    Parameters and their names are those of mmseg's UPerHead.

    Args:
        factorize: False computes mmseg's way, whose multiply-adds are the published ones.
        kwargs: as in mmseg's UPerHead, without conv_cfg.

    Raises:
        InputError: a conv_cfg is given.
    """

    def __init__(self, *, factorize: bool = True, **kwargs):
        if kwargs.get("conv_cfg") is not None:
            raise InputError(
                f"FactorizedUPerHead: knows plain convolutions only, not conv_cfg="
                f"{kwargs['conv_cfg']}; use type='UPerHead'"
            )
        super().__init__(**kwargs)
        self.factorize = factorize

    def psp_forward(self, inputs: list[Tensor]) -> Tensor:
        """Pyramid pooling of the last map (N, C, H, W) to (N, channels, H, W)."""
        if not self.factorize:
            return super().psp_forward(inputs)
        x = inputs[-1]
        return self._convolve(self.bottleneck, [x, *(pooling(x) for pooling in self.psp_modules)])

    def _forward_feature(self, inputs: tuple[Tensor, ...]) -> Tensor:
        if not self.factorize:
            return super()._forward_feature(inputs)
        inputs = self._transform_inputs(inputs)
        x = self.psp_forward(inputs)
        maps = [x]
        for i in reversed(range(len(inputs) - 1)):
            size = inputs[i].shape[2:]
            x = resize(x, size, mode="bilinear", align_corners=self.align_corners)
            # Added in place to the upsampled map, which no gradient needs.
            x.add_(self._convolve(self.lateral_convs[i], [inputs[i]]))
            maps.insert(0, self._convolve(self.fpn_convs[i], [x]))
        del x  # as large as the fusion's result, which is where the peak is
        return self._convolve(self.fpn_bottleneck, maps)

    def _convolve(self, module: ConvModule, maps: list[Tensor]) -> Tensor:
        """The module's convolution of maps resized to the first, norm and activation."""
        conv, norm = module.conv, module.norm if module.with_norm else None
        weight, bias = conv.weight, conv.bias
        if _is_constant(norm):
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            norm = None
        if len(maps) > 1:
            x = upsampled_conv2d(maps, weight, bias, align_corners=self.align_corners)
        elif conv.kernel_size == (3, 3):
            x = conv3x3(maps[0], weight, bias)
        else:
            x = F.conv2d(maps[0], weight, bias)
        if norm is not None:
            x = norm(x)
        if isinstance(module.activate, nn.ReLU) and not torch.is_grad_enabled():
            return x.relu_()
        return module.activate(x)


def _is_constant(norm: nn.Module | None) -> bool:
    """Whether a norm is a fixed affine map of each channel, and nothing asks for its gradients."""
    return (
        isinstance(norm, _BatchNorm)
        and not norm.training
        and norm.running_mean is not None
        and not torch.is_grad_enabled()
    )


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
