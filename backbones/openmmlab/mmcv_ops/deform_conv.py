"""Compute deformable convolution, plain (v1) and modulated (v2), with torchvision's kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .precision import compute_dtype
from .torchvision_kernels import torchvision_kernels


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill output (N, O, OH, OW) with the deformable convolution of input (N, C, H, W).

    weight: (O, C / group, kH, kW); offset: (N, deformable_group * kH * kW * 2, OH, OW), of each tap
    the shift in y and in x. columns, ones and im2col_step are scratch of mmcv's kernels. Halves are
    computed in float32 and rounded once.

    Dai et al., Deformable Convolutional Networks, 2017, section 2.1; mmcv 2.3.6,
    ops/csrc/pytorch/deform_conv.cpp.
    """
    convolution = _DeformableConvolution(
        (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    )
    _require_size(offset, output.shape[2:], "deform_conv_forward")
    output.copy_(convolution.forward(input, weight, offset))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill gradInput and gradOffset with `deform_conv_forward`'s gradients for gradOutput."""
    convolution = _DeformableConvolution(
        (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    )
    gradients = convolution.backward(gradOutput, input, weight, offset)
    gradInput.copy_(gradients[0])
    gradOffset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Fill gradWeight with scale times `deform_conv_forward`'s gradient for gradOutput."""
    convolution = _DeformableConvolution(
        (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    )
    # torchvision's kernel reads the weights for the other gradients alone.
    weight = torch.zeros_like(gradWeight)
    gradWeight.copy_(convolution.backward(gradOutput, input, weight, offset)[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill output (N, O, OH, OW) with the modulated deformable convolution of input (N, C, H, W).

    As `deform_conv_forward`, each tap times its value of mask (N, deformable_group * kernel_h *
    kernel_w, OH, OW); bias: (O,), read if with_bias.

    An offset and a mask of another height and width are read as mmcv reads them: the values of an
    image, in their order in memory, reinterpreted at the output's size. DyHead, which takes both
    from another level, is trained so. Too few values raise RuntimeError.

    Zhu et al., Deformable ConvNets v2, 2018, section 3.2; mmcv 2.3.6,
    ops/csrc/pytorch/modulated_deform_conv.cpp.
    """
    convolution = _DeformableConvolution(
        (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group
    )
    taps, size = deformable_group * kernel_h * kernel_w, output.shape[2:]
    offset = _laid_out(offset, (2 * taps, *size), "offset")
    mask = _laid_out(mask, (taps, *size), "mask")
    output.copy_(convolution.forward(input, weight, offset, mask, bias if with_bias else None))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill the five gradients of `modulated_deform_conv_forward` for grad_output.

    Values of an offset or a mask that the output's size leaves unread have gradient 0.
    """
    convolution = _DeformableConvolution(
        (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group
    )
    taps, size = deformable_group * kernel_h * kernel_w, grad_output.shape[2:]
    laid_out = (
        _laid_out(offset, (2 * taps, *size), "offset"),
        _laid_out(mask, (taps, *size), "mask"),
    )
    of_input, of_weight, of_offset, of_mask = convolution.backward(
        grad_output, input, weight, *laid_out
    )
    grad_input.copy_(of_input)
    grad_weight.copy_(of_weight)
    for buffer, gradient in ((grad_offset, of_offset), (grad_mask, of_mask)):
        values = gradient.new_zeros((len(buffer), buffer.shape[1:].numel()))
        gradient = gradient.flatten(1)
        values[:, : gradient.shape[1]] = gradient
        buffer.copy_(values.view(buffer.shape))
    if with_bias:
        grad_bias.copy_(grad_output.to(of_weight.dtype).sum(dim=(0, 2, 3)))


@dataclass(frozen=True)
class _DeformableConvolution:
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        dtype = compute_dtype(input)
        if not len(input):
            return input.new_zeros((0, len(weight), *offset.shape[2:]))
        return torchvision_kernels().deform_conv2d(
            *self._operands(dtype, input, weight, offset, mask),
            weight.new_zeros(len(weight), dtype=dtype) if bias is None else bias.to(dtype),
            *self._settings(),
            mask is not None,
        )

    def backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of input, weight, offset and mask."""
        dtype = compute_dtype(input)
        operands = self._operands(dtype, input, weight, offset, mask)
        if not len(input):
            return tuple(torch.zeros_like(operand) for operand in operands)
        of_input, of_weight, of_offset, of_mask, _ = torchvision_kernels()._deform_conv2d_backward(
            grad_output.to(dtype),
            *operands,
            weight.new_zeros(len(weight), dtype=dtype),
            *self._settings(),
            mask is not None,
        )
        return of_input, of_weight, self._without_border(of_offset, operands), of_mask

    def _without_border(self, gradient: Tensor, operands: tuple[Tensor, ...]) -> Tensor:
        # A tap exactly one pixel outside the map, which offsets of 0 and padding make, has no
        # derivative there: torchvision gives that of the inside, mmcv 0.
        _, weight, offset, _ = operands
        n, _, height, width = offset.shape
        gradient = gradient.view(n, self.deform_groups, *weight.shape[2:], 2, height, width)
        offset = offset.reshape(gradient.shape)
        for axis, size in enumerate((height, width)):
            start = torch.arange(size, device=offset.device) * self.stride[axis]
            tap = torch.arange(weight.shape[2 + axis], device=offset.device) * self.dilation[axis]
            start, tap = (start[:, None], tap[:, None]) if axis == 0 else (start, tap)
            position = start - self.padding[axis] + tap[..., None, None]
            gradient[..., axis, :, :].masked_fill_(position + offset[..., axis, :, :] == -1, 0)
        return gradient.view(n, -1, height, width)

    @staticmethod
    def _operands(
        dtype: torch.dtype, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mask = input.new_zeros((len(input), 1)) if mask is None else mask
        return input.to(dtype), weight.to(dtype), offset.to(dtype), mask.to(dtype)

    def _settings(self) -> tuple[int, ...]:
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.deform_groups)


def _require_size(offset: Tensor, size: torch.Size, op: str) -> None:
    if offset.shape[2:] != size:
        raise RuntimeError(
            f"{op}: offset is {tuple(offset.shape[2:])} high and wide, the output {tuple(size)}"
        )


def _laid_out(values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if values.shape[1:] == shape:
        return values
    values = values.flatten(1)
    count = torch.Size(shape).numel()
    if values.shape[1] < count:
        raise RuntimeError(
            f"modulated_deform_conv: {name} has {values.shape[1]} values per image, an output of "
            f"{tuple(shape[1:])} needs {count}"
        )
    return values[:, :count].reshape(-1, *shape)
