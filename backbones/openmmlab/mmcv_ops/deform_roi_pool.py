"""Compute deformable RoI pooling: RoIAlign whose bins are shifted by learnt offsets."""

import torch
from torch import Tensor

from .precision import compute_dtype
from .roi_bins import BilinearSamples, RoIBins


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill output (K, C, pooled_height, pooled_width) with the means of the shifted bins' samples.

    input: (N, C, H, W); rois: (K, 5), image index, x1, y1, x2, y2, as for RoIAlign with aligned.
    offset: (K, 2, pooled_height, pooled_width), the shifts in x and in y, which times gamma are
    widths and heights of the RoI; empty for none. Halves are computed in float32.

    Dai et al., Deformable Convolutional Networks, 2017, section 2.2; mmcv 2.3.6,
    ops/csrc/common/cuda/deform_roi_pool_cuda_kernel.cuh.
    """
    dtype = compute_dtype(input)
    bins = RoIBins.of(
        rois.to(dtype), spatial_scale, pooled_height, pooled_width, sampling_ratio, True
    )
    pixels = _pixels(input.to(dtype))
    pooled = pixels.new_zeros((len(rois), pooled_height, pooled_width, input.shape[1]))
    for chosen, count_y, count_x in bins.groups():
        group = bins[chosen]
        shifts = _shifts(group, offset, chosen, gamma)
        total = pooled[chosen]
        for row in range(count_y):
            for column in range(count_x):
                _, points = _points(group, shifts, row, column, input)
                for y, x, weight in points.corners():
                    total += weight[..., None] * pixels[_index(group, y, x, input)]
        pooled[chosen] = total / (count_y * count_x)
    output.copy_(pooled.movedim(3, 1))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill grad_input (N, C, H, W) and grad_offset with the gradients for grad_output.

    The arguments are those of `deform_roi_pool_forward`. A sample's derivative in x is mmcv's: that
    of the two rows that it lies between, continued where it lies above the first row, and 0 where
    it lies in the last one; in y likewise.
    """
    dtype = compute_dtype(input)
    bins = RoIBins.of(
        rois.to(dtype), spatial_scale, pooled_height, pooled_width, sampling_ratio, True
    )
    pixels = _pixels(input.to(dtype))
    gradient = torch.zeros_like(pixels)
    of_offset = pixels.new_zeros((len(rois), 2, pooled_height, pooled_width))
    for chosen, count_y, count_x in bins.groups():
        group = bins[chosen]
        shifts = _shifts(group, offset, chosen, gamma)
        of_sample = grad_output[chosen].to(dtype).movedim(1, 3) / (count_y * count_x)
        of_shift = of_offset[chosen]
        for row in range(count_y):
            for column in range(count_x):
                (sample_y, sample_x), points = _points(group, shifts, row, column, input)
                values = []
                for y, x, weight in points.corners():
                    index = _index(group, y, x, input)
                    values.append(pixels[index])
                    share = weight[..., None] * of_sample
                    gradient.index_add_(0, index.flatten(), share.flatten(0, 2))
                upper_left, upper_right, lower_left, lower_right = values
                down, up = (
                    (sample_y - points.y_low)[..., None],
                    (points.y_high - sample_y)[..., None],
                )
                right, left = (
                    (sample_x - points.x_low)[..., None],
                    (points.x_high - sample_x)[..., None],
                )
                by_x = down * (lower_right - lower_left) + up * (upper_right - upper_left)
                by_y = right * (lower_right - upper_right) + left * (lower_left - upper_left)
                for axis, by in enumerate((by_x, by_y)):
                    of_shift[:, axis] += (by * of_sample).sum(dim=3) * points.inside
        sizes = torch.stack([group.width, group.height], dim=1)[:, :, None, None]
        of_offset[chosen] = of_shift * sizes * gamma
    n, c, h, w = input.shape
    grad_input.copy_(gradient.view(n, h, w, c).movedim(3, 1))
    if grad_offset.numel():
        grad_offset.copy_(of_offset.view_as(grad_offset))


def _pixels(input: Tensor) -> Tensor:
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1])  # (N * H * W, C)


def _index(bins: RoIBins, y: Tensor, x: Tensor, input: Tensor) -> Tensor:
    height, width = input.shape[2:]
    return (bins.image[:, None, None] * height + y) * width + x


def _shifts(bins: RoIBins, offset: Tensor, chosen: Tensor, gamma: float) -> Tensor | None:
    if not offset.numel():
        return None
    sizes = torch.stack([bins.width, bins.height], dim=1)[:, :, None, None]
    shape = (-1, 2, bins.pooled_height, bins.pooled_width)
    return gamma * sizes * offset.view(shape)[chosen].to(sizes.dtype)  # (K, 2, PH, PW)


def _points(
    bins: RoIBins, shifts: Tensor | None, row: int, column: int, input: Tensor
) -> tuple[tuple[Tensor, Tensor], BilinearSamples]:
    y, x = torch.broadcast_tensors(*bins.samples(row, column))
    if shifts is not None:
        x, y = x + shifts[:, 0], y + shifts[:, 1]
    return (y, x), BilinearSamples.at(y, x, *input.shape[2:])
