"""Compute RoIAlign with the mean or the maximum of each bin's samples."""

import torch
from torch import Tensor

from .precision import compute_dtype
from .roi_bins import BilinearSamples, RoIBins
from .torchvision_kernels import torchvision_kernels


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill output (K, C, aligned_height, aligned_width) with each bin's mean or maximum sample.

    input: (N, C, H, W) in any memory format; rois: (K, 5), image index, x1, y1, x2, y2, which times
    spatial_scale are pixels of input. sampling_ratio: bilinear samples per bin and axis; 0 for the
    size of the bin in pixels, rounded up. aligned: shift by half a pixel; without it a RoI is at
    least one pixel wide and high. A RoI without samples (no area, x2 < x1 or y2 < y1) gives zeros.
    fp16 and bf16 are computed in float32 and rounded once; mmcv computes fp16 in fp16 and has no
    bf16.

    pool_mode: 1 for the mean, 0 for the maximum, which also fills argmax_y and argmax_x, of
    output's shape, with the row and the column of the greatest of the bin's samples, of equal ones
    the first, and -1 where a RoI has none. mmcv keeps the sample's coordinates there, which halves
    cannot hold, and its maximum of no samples is the lowest float32.

    mmdet casts RoIs to the dtype of the features before it calls this: in bf16 a coordinate near
    1000 arrives rounded to a multiple of 4, in fp16 to one of 0.5.

    He et al., Mask R-CNN, 2017, section 3; mmcv 2.3.6, ops/csrc/pytorch/cpu/roi_align.cpp.
    """
    dtype = compute_dtype(input)
    if pool_mode == 0:
        bins = RoIBins.of(
            rois.to(dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
        for buffer, filled in zip(
            (output, argmax_y, argmax_x), _maximum(input.to(dtype), bins), strict=True
        ):
            buffer.copy_(filled)
        return
    output.copy_(
        torchvision_kernels().roi_align(
            input.to(dtype),
            _sampled_rois(rois.to(dtype), sampling_ratio),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill grad_input (N, C, H, W) with `roi_align_forward`'s gradient for grad_output.

    grad_output: (K, C, aligned_height, aligned_width); the other arguments are those of the forward
    pass. fp16 and bf16 are summed in float32 and rounded once. On CUDA the order of torchvision's
    sums varies; under `torch.use_deterministic_algorithms(True)` they are those of
    `backbones.ops.roi_align`, in one order.
    """
    dtype = compute_dtype(grad_output)
    if pool_mode == 0:
        bins = RoIBins.of(
            rois.to(dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
        gradient = _maximum_backward(
            grad_output.to(dtype), bins, argmax_y.to(dtype), argmax_x.to(dtype), grad_input.shape
        )
        grad_input.copy_(gradient)
        return
    if grad_output.is_cuda and torch.are_deterministic_algorithms_enabled():
        # Imported here: these operators also load without the package, as mmcv's own would.
        from backbones.ops.roi_align import roi_align

        with torch.enable_grad():
            x = torch.zeros_like(grad_input, dtype=dtype, requires_grad=True)
            y = roi_align(
                [x],
                rois.to(dtype),
                torch.zeros(len(rois), dtype=torch.long, device=rois.device),
                [spatial_scale],
                (aligned_height, aligned_width),
                sampling_ratio=sampling_ratio,
                aligned=aligned,
            )
        grad_input.copy_(torch.autograd.grad(y, x, grad_output.to(dtype))[0])
        return
    grad_input.copy_(
        torchvision_kernels()._roi_align_backward(
            grad_output.to(dtype),
            _sampled_rois(rois.to(dtype), sampling_ratio),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _sampled_rois(rois: Tensor, sampling_ratio: int) -> Tensor:
    # With sampling_ratio 0 a negative size means a negative number of samples. torchvision's CUDA
    # kernel then gives zeros, as for a size of 0; its CPU kernel fails.
    if sampling_ratio > 0:
        return rois
    return torch.cat([rois[:, :3], torch.maximum(rois[:, 3:], rois[:, 1:3])], dim=1)


def _maximum(input: Tensor, bins: RoIBins) -> tuple[Tensor, Tensor, Tensor]:
    _, channels, height, width = input.shape
    pixels = input.permute(0, 2, 3, 1).reshape(-1, channels)
    shape = (len(bins.image), bins.pooled_height, bins.pooled_width, channels)
    pooled = input.new_zeros(shape)
    argmax_y, argmax_x = input.new_full(shape, -1), input.new_full(shape, -1)
    for chosen, count_y, count_x in bins.groups():
        group = bins[chosen]
        image = group.image[:, None, None]
        best = input.new_full((len(chosen), *shape[1:]), -torch.inf)
        best_y, best_x = torch.full_like(best, -1), torch.full_like(best, -1)
        for row in range(count_y):
            for column in range(count_x):
                points = BilinearSamples.at(*group.samples(row, column), height, width)
                value = torch.zeros_like(best)
                for y, x, weight in points.corners():
                    value += weight[..., None] * pixels[(image * height + y) * width + x]
                greater = value > best
                best = torch.where(greater, value, best)
                best_y.masked_fill_(greater, row)
                best_x.masked_fill_(greater, column)
        pooled[chosen], argmax_y[chosen], argmax_x[chosen] = best, best_y, best_x
    return pooled.movedim(3, 1), argmax_y.movedim(3, 1), argmax_x.movedim(3, 1)


def _maximum_backward(
    grad_output: Tensor, bins: RoIBins, argmax_y: Tensor, argmax_x: Tensor, shape: torch.Size
) -> Tensor:
    _, channels, height, width = shape
    gradient = grad_output.new_zeros(shape)
    picked = argmax_y >= 0
    points = BilinearSamples.at(*bins.samples(argmax_y, argmax_x), height, width)
    channel = torch.arange(channels, device=grad_output.device)[:, None, None]
    plane = (bins.image[:, None, None, None] * channels + channel) * height
    for y, x, weight in points.corners():
        index = ((plane + y) * width + x)[picked]
        gradient.view(-1).index_add_(0, index, (grad_output * weight)[picked])
    return gradient
