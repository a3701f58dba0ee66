"""Provide decode heads: UperNet's in factorised form, and a linear one."""

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.decode_heads.uper_head import UPerHead
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from backbones.errors import InputError
from backbones.ops.average_pool import average_pool
from backbones.ops.upsampled_conv import upsampled_conv2d
from backbones.ops.winograd_conv import conv3x3


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Probe a frozen backbone: dropout, normalisation and one 1x1 convolution on one map.

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
        """Return logits (N, num_classes, H, W) of the map (N, in_channels, H, W)."""
        x: Any = self._transform_inputs(inputs)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv_seg(self.norm(x))


@MODELS.register_module()
class FactorizedUPerHead(UPerHead):
    """Compute UperNet's head (arXiv:1807.10221), the same function, with a third of the operations.

    Its two large convolutions over upsampled maps, the fusion of all levels and the bottleneck of
    the pyramid pooling, are computed at the maps' own sizes (`backbones.ops.upsampled_conv`).
    Without gradients batch norm is folded into a copy of each convolution's weights.
    Parameters and their names are those of mmseg's UPerHead.

    Args:
        factorize: False computes as mmseg does, whose multiply-adds are the published ones. None
            factorises but on a GPU, where the smaller number of multiply-adds takes more launches
            and nobody has measured yet which of the two is ahead.
        kwargs: as in mmseg's UPerHead, without conv_cfg.

    Raises:
        InputError: a conv_cfg is given.
    """

    def __init__(self, *, factorize: bool | None = None, **kwargs):
        if kwargs.get("conv_cfg") is not None:
            raise InputError(
                "FactorizedUPerHead: supports plain convolutions only, not "
                f"conv_cfg={kwargs['conv_cfg']}; use type='UPerHead'",
                code="unsupported",
                where="FactorizedUPerHead",
            )
        super().__init__(**kwargs)
        self.factorize = factorize
        for pooling in self.psp_modules:
            pooling[0] = DeterministicPool(pooling[0].output_size)

    def factorizes(self, x: Tensor) -> bool:
        """Return whether the convolutions over x and other maps are computed at their own sizes."""
        return not x.is_cuda if self.factorize is None else self.factorize

    def psp_forward(self, inputs: list[Tensor]) -> Tensor:
        """Pool the last map (N, C, H, W) in a pyramid, to (N, channels, H, W)."""
        x = inputs[-1]
        if not self.factorizes(x):
            return super().psp_forward(inputs)
        return self._convolve(self.bottleneck, [x, *(pooling(x) for pooling in self.psp_modules)])

    def _forward_feature(self, inputs: Any) -> Tensor:
        if not self.factorizes(inputs[0]):
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

    def _convolve(self, module: Any, maps: list[Tensor]) -> Tensor:
        """Apply a module's convolution to maps resized to the first, then norm and activation."""
        conv: Any = module.conv
        norm: Any = module.norm if module.with_norm else None
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


class DeterministicPool(nn.AdaptiveAvgPool2d):
    """PyTorch's pooling; in a deterministic run on a GPU, where its gradient has no fixed order,
    two matrix products."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the means (N, C, h, w) of the bins of a map (N, C, H, W)."""
        if not (input.is_cuda and torch.are_deterministic_algorithms_enabled()):
            return super().forward(input)
        bins: Any = self.output_size
        with torch.autocast("cuda", enabled=False):
            return average_pool(input, bins if isinstance(bins, tuple) else (bins, bins))


def _is_constant(norm: Any) -> bool:
    """Return whether a norm is a fixed affine map of each channel and needs no gradients."""
    return (
        isinstance(norm, _BatchNorm)
        and not norm.training
        and norm.running_mean is not None
        and not torch.is_grad_enabled()
    )
