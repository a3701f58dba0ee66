"""Compute RoIAlign on a feature pyramid as a sparse matrix product, forward and backward.

A bin's mean of bilinear samples is a weighted sum of rows of the map (H * W, C): a bag of rows.
`embedding_bag` sums bags on all threads and a row of channels at a time, where
torchvision's CPU kernels go sample by sample on one thread. The gradient is the transposed product:
a bag for each row of the map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Extract features (K, C, h, w), channels-last, of boxes, each from its level of the pyramid.

    He et al., Mask R-CNN, 2017, section 3; the same samples as torchvision 0.26,
    ops/cpu/roi_align_kernel.cpp. Boxes get no gradient.

    Args:
        maps: (N, C, H, W) each, float32 or float64; channels-last ones are read without a copy.
        rois: (K, 5) in the maps' dtype: image index, x1, y1, x2, y2 in pixels of the image. Without
            area, or not finite: zeros.
        levels: (K,) index of each box's map.
        scales: cells per pixel of each map.
        output_size: bins (h, w).
        sampling_ratio: samples per bin and axis; 0 for the size of the bin in cells, rounded up.
        aligned: cell centres lie at halves; without it a box is at least one cell wide and high.
    """
    output = _RoIAlign.apply(
        rois, levels, tuple(scales), output_size, sampling_ratio, aligned, *maps
    )
    # A view made inside the Function could not be changed in place, as heads such as HTC's do.
    return output.view(len(rois), *output_size, maps[0].shape[1]).permute(0, 3, 1, 2)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rois, levels, scales, output_size, sampling_ratio, aligned, *maps):
        channels, bins = maps[0].shape[1], output_size[0] * output_size[1]
        output = maps[0].new_zeros(len(rois), bins, channels)
        saved = []
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            rows = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * H * W, C)
            chosen = (levels == level).nonzero().squeeze(1)
            if not len(chosen):
                saved.append(None)
                continue
            for part, cells, weights in _bags(
                rois[chosen], x.shape, scale, output_size, sampling_ratio, aligned
            ):
                part = chosen[part]
                bags = F.embedding_bag(cells, rows, mode="sum", per_sample_weights=weights)
                output[part] = bags.view(len(part), bins, channels)
                saved += [part, cells, weights]
            saved.append(None)
        ctx.save_for_backward(*saved)
        ctx.shapes = [x.shape for x in maps]
        return output  # (K, h * w, C)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        bins, channels = grad.shape[1:]
        rows = grad.reshape(-1, channels)  # (K * h * w, C)
        offsets = torch.arange(bins, device=grad.device)
        saved = iter(ctx.saved_tensors)  # a None ends each level
        grads = []
        for shape in ctx.shapes:
            numbers, cells, weights = [], [], []
            while (part := next(saved)) is not None:
                cell, weight = next(saved), next(saved)
                number = (part[:, None] * bins + offsets).flatten()  # (k * h * w,)
                numbers.append(number.int().repeat_interleave(cell.shape[1]))
                cells.append(cell.flatten())
                weights.append(weight.flatten())
            size = shape[0] * shape[2] * shape[3]
            if cells:
                total = _transposed_bags(
                    torch.cat(numbers), torch.cat(cells), torch.cat(weights), rows, size
                )
            else:
                total = grad.new_zeros(size, channels)
            total = total.view(shape[0], shape[2], shape[3], channels)
            grads.append(total.permute(0, 3, 1, 2))  # (N, C, H, W)
        return (None,) * 6 + tuple(grads)


def _transposed_bags(
    numbers: Tensor, cells: Tensor, weights: Tensor, rows: Tensor, size: int
) -> Tensor:
    """Return for each of `size` cells the weighted sum (size, C) of the rows whose bags hold it."""
    cells, order = cells.sort(stable=True)
    counts = torch.bincount(cells, minlength=size)
    starts = (counts.cumsum(0) - counts).int()
    return F.embedding_bag(
        numbers[order], rows, starts, mode="sum", per_sample_weights=weights[order]
    )


def _bags(
    rois: Tensor,
    shape: torch.Size,
    scale: float,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
):
    """Yield bags of equal length: their boxes (k,), cells and weights (k * h * w, length)."""
    images, _, height, width = shape
    offset = 0.5 if aligned else 0.0
    start = rois[:, 1:3] * scale - offset
    size = rois[:, 3:5] * scale - offset - start
    if not aligned:
        size = size.clamp(min=1)
    x, x_weight, x_length = _taps(start[:, 0], size[:, 0], output_size[1], width, sampling_ratio)
    y, y_weight, y_length = _taps(start[:, 1], size[:, 1], output_size[0], height, sampling_ratio)
    y = y + rois[:, 0].int()[:, None, None] * height
    kinds, kind = torch.unique(torch.stack([y_length, x_length], 1), dim=0, return_inverse=True)
    for number, (across, along) in enumerate(kinds.tolist()):
        if not across or not along:  # no samples
            continue
        part = (kind == number).nonzero().squeeze(1)
        # (k, h, 1, length of y, 1) and (k, 1, w, 1, length of x)
        rows, columns = y[part, :, None, :across, None], x[part, None, :, None, :along]
        weights = y_weight[part, :, None, :across, None] * x_weight[part, None, :, None, :along]
        cells = rows * width + columns
        yield part, cells.view(-1, across * along), weights.view(-1, across * along)


def _taps(
    start: Tensor, size: Tensor, bins: int, cells: int, sampling_ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cells and weights (K, bins, length) of the bins along one axis, and the count (K,)."""
    bin_size = size / bins
    if sampling_ratio > 0:
        samples = torch.full_like(bin_size, sampling_ratio)
    else:
        samples = bin_size.ceil().clamp(min=0)
    samples = torch.where(bin_size.isfinite() & start.isfinite(), samples, 0)  # (K,)
    most = max(int(samples.max()), 1)
    grid = torch.arange(most, device=start.device, dtype=start.dtype)
    first = start[:, None] + torch.arange(bins, device=start.device) * bin_size[:, None]
    at = first[..., None] + ((grid + 0.5) * bin_size[:, None] / samples[:, None])[:, None]
    # (K, bins, samples)
    counted = (grid < samples[:, None])[:, None] & (at >= -1) & (at <= cells)
    at = torch.where(counted, at, 0).clamp(0, cells - 1)
    low = at.int()
    high = (low + 1).clamp(max=cells - 1)
    share = at - low
    weight = counted / samples.clamp(min=1)[:, None, None]
    cell = torch.cat([low, high], 2)
    weight = torch.cat([weight * (1 - share), weight * share], 2)
    if sampling_ratio > 0:
        return cell, weight, (samples * 2).int()
    # Samples are less than a cell apart: those of a bin share cells, which are then read once.
    taken = torch.cat([counted, counted], 2)
    least = torch.where(taken, cell, cells).amin(2, keepdim=True)
    length = torch.where(taken, cell - least + 1, 0).amax((1, 2))
    longest = max(int(length.max()), 1)
    merged = weight.new_zeros(len(start), bins, longest)
    merged.scatter_add_(2, torch.where(taken, cell - least, 0).long(), weight)
    reach = torch.arange(longest, device=start.device, dtype=cell.dtype)
    return (least + reach).clamp(max=cells - 1), merged, length
