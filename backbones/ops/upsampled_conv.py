"""Convolve maps upsampled to one size with a 3x3 kernel, at the maps' own sizes.

UPerNet's head resizes its maps to the finest one, concatenates them and convolves. Convolution is
a sum over input maps and over nine taps; a tap is a 1x1 product W_yx, which acts on channels only,
and a shift, which like bilinear interpolation acts on positions only. So the two commute. With U_y
and U_x the interpolation matrices of rows and columns and S the shift with zeros at the border of
the large map, the part of a map x is

    sum_yx (S_y U_y) (S_x U_x)^T W_yx x  =  sum_y (S_y U_y) sum_x (S_x U_x)^T (W_yx x).

The products W_yx x, nearly all of the work, are taken at the map's own size: a quarter, a 16th and
a 64th of the pixels for strides 8, 16 and 32 under 4. Columns are interpolated next, at the low
height, the three taps of a row in one matrix product, and rows last. Both matrices are banded, so
they are applied by tiles, which also stay in the cache and bound the memory.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from .eager import eager
from .interpolation import interpolation_matrix, interpolation_sources
from .winograd_conv import conv3x3

# Low pixels in a tile's rows and output columns in it: what a cache holds; on a GPU, few launches.
# The CPU's were tuned on an AMD EPYC (Zen 4, 32 MiB of L3); results are right with any.
CPU_TILE = (1024, 32)
GPU_TILE = (2**15, 128)


@eager  # its tiles are written in place: a graph would take the longer way
def upsampled_conv2d(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    align_corners: bool = False,
) -> Tensor:
    """Convolve the concatenation of maps that are bilinearly resized to the size of the first.

    Maps of more than half of its pixels are resized; the others are convolved at their own size.
    Under autocast everything is computed in autocast's dtype, as convolutions are.

    Args:
        maps: (N, C_i, H_i, W_i) of one floating dtype; best in channels-last layout.
        weight: (O, sum of C_i, 3, 3).
        bias: (O,).
        align_corners: as in `torch.nn.functional.interpolate`.

    Returns:
        (N, O, H_0, W_0) in channels-last layout, equal to `upsampled_conv2d_reference`.
    """
    device = maps[0].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        maps, weight = [x.to(dtype) for x in maps], weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return upsampled_conv2d(maps, weight, bias, align_corners=align_corners)

    size = maps[0].shape[2:]
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    fine = [2 * x.shape[2:].numel() > size.numel() for x in maps]
    fine_maps = [_resize(x, size, align_corners) for x in compress(maps, fine)]
    fine_weights = list(compress(weights, fine))
    x = torch.cat(fine_maps, dim=1) if len(fine_maps) > 1 else fine_maps[0]
    w = torch.cat(fine_weights, dim=1) if len(fine_weights) > 1 else fine_weights[0]
    out = conv3x3(x, w, bias).contiguous(memory_format=torch.channels_last)
    for x, w, is_fine in zip(maps, weights, fine, strict=True):
        if not is_fine:
            out = _AddUpsampledConv.apply(out, x, w, align_corners)
    return out


def upsampled_conv2d_reference(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    align_corners: bool = False,
) -> Tensor:
    """Define `upsampled_conv2d`: resize, concatenate, convolve."""
    size = maps[0].shape[2:]
    resized = [_resize(x, size, align_corners) for x in maps]
    return F.conv2d(torch.cat(resized, dim=1), weight, bias, padding=1)


def _resize(x: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _taps(low: int, high: int, align_corners: bool) -> Tensor:
    """Return (high, 3, low): by tap, the weights of a line's positions for each output position."""
    upsample = interpolation_matrix(low, high, align_corners).T
    shifted = F.pad(upsample, (1, 1)).unfold(1, high, 1)  # (low, 3, high)
    return shifted.permute(2, 1, 0)


def _reached(sources: list[int], start: int, stop: int) -> slice:
    """Return output positions with a tap between low positions [start, stop), widened by one."""
    reached = [i for i, low in enumerate(sources) if start - 2 <= low <= stop] or [0]
    return slice(max(reached[0] - 1, 0), min(reached[-1] + 2, len(sources)))


def _needed(sources: list[int], low: int, start: int, stop: int) -> slice:
    """Return the low positions that the taps of output positions [start, stop) lie between."""
    first, last = sources[max(start - 1, 0)], sources[min(stop, len(sources) - 1)]
    return slice(max(first - 1, 0), min(last + 3, low))


def _bands(x: Tensor, size: torch.Size, align_corners: bool) -> tuple[list, list]:
    """Return the bands of a map that is resized to a size; those of a size are made once.

    Making them takes a copy to the device, for which a GPU's queue would run empty in every step.
    """
    make = _make_bands if type(x) is Tensor else _make_bands.__wrapped__  # a fake one is not kept
    tile = GPU_TILE if x.is_cuda else CPU_TILE
    return make(tuple(x.shape[2:]), tuple(size), align_corners, tile, x.dtype, x.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _make_bands(
    low_size: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    tile: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list, list]:
    """Split a map into blocks of low rows with their output rows, and of columns with their window.

    Each is (output slice, low slice, coefficients). Those of rows are (rows, 3 * low rows), tap by
    tap; those of columns are (columns, 3 * low columns), position by position.
    """
    (low_height, low_width), (height, width) = low_size, size
    tile_pixels, tile_columns = tile
    tile_rows = max(tile_pixels // low_width, 8)  # fewer would make narrow products

    taps = _taps(low_height, height, align_corners).to(device, dtype)  # (H, 3, h)
    sources = interpolation_sources(low_height, height, align_corners)
    rows = []
    for start in range(0, low_height, tile_rows):
        low = slice(start, min(start + tile_rows, low_height))
        out = _reached(sources, low.start, low.stop)
        rows.append((out, low, taps[out, :, low].flatten(1)))

    taps = _taps(low_width, width, align_corners).to(device, dtype).transpose(1, 2)  # (W, w, 3)
    sources = interpolation_sources(low_width, width, align_corners)
    columns = []
    for start in range(0, width, tile_columns):
        out = slice(start, min(start + tile_columns, width))
        low = _needed(sources, low_width, out.start, out.stop)
        columns.append((out, low, taps[out, low].flatten(1)))
    return rows, columns


def _images_at_once(x: Tensor) -> int:
    """Return how many images share a tile: on a GPU few launches count, on a CPU its cache."""
    return max(GPU_TILE[0] // x.shape[2:].numel(), 1) if x.is_cuda else 1


def _by_tap_rows(weight: Tensor) -> Tensor:
    """Return (O, C, 3, 3) as (3, 3 * O, C): for each row of taps its columns' three products."""
    return weight.permute(2, 3, 0, 1).flatten(1, 2).contiguous()


def _rows(x: Tensor) -> Tensor:
    """Return the view (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _block(images: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return the view (n, rows, columns * C) of (n, H, W, C)."""
    block = images[:, rows, columns]
    return block.view(*block.shape[:2], -1)


class _AddUpsampledConv(torch.autograd.Function):
    """Add the convolution of one upsampled map to `out`, in place.

    Plain autograd would keep or rebuild the nine products of the whole map at once; here neither
    direction holds more than a tile's.
    """

    @staticmethod
    def forward(ctx, out: Tensor, x: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight)
        ctx.align_corners = align_corners
        rows, columns = _bands(x, out.shape[2:], align_corners)
        products = _by_tap_rows(weight)
        channels, width = weight.shape[0], x.shape[3]
        parts = _images_at_once(x)
        for target, images in zip(_rows(out).split(parts), _rows(x).split(parts), strict=True):
            for out_rows, low_rows, row_taps in rows:
                lines = images[:, low_rows].transpose(0, 1).flatten(0, 2)  # (h * n * w, C)
                taps = lines.new_empty(3, len(lines), 3 * channels)
                for product, result in zip(products, taps, strict=True):
                    torch.mm(lines, product.T, out=result)
                taps = taps.view(-1, 3 * width, channels)  # (3 * h * n, w * 3, O)
                for out_columns, low_columns, column_taps in columns:
                    window = taps[:, 3 * low_columns.start : 3 * low_columns.stop]
                    lines = torch.matmul(column_taps, window)  # (3 * h * n, W, O)
                    block = _block(target, out_rows, out_columns)  # (n, H, W * O)
                    lines = lines.view(-1, len(block), block.shape[2])  # (3 * h, n, W * O)
                    if len(block) == 1:
                        block[0].addmm_(row_taps, lines[:, 0])
                    else:
                        block.baddbmm_(row_taps.expand(len(block), -1, -1), lines.transpose(0, 1))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows, columns = _bands(x, grad.shape[2:], ctx.align_corners)
        products = _by_tap_rows(weight)
        channels, width = weight.shape[0], x.shape[3]
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        grad_products = torch.zeros_like(products)
        targets, images, grad_images = (
            _rows(each).split(_images_at_once(x)) for each in (grad, x, grad_x)
        )
        for target, image, grad_image in zip(targets, images, grad_images, strict=True):
            for out_rows, low_rows, row_taps in rows:
                low_lines = 3 * (low_rows.stop - low_rows.start) * len(target)  # 3 * h * n
                grad_taps = grad.new_zeros(low_lines, 3 * width, channels)
                for out_columns, low_columns, column_taps in columns:
                    block = _block(target, out_rows, out_columns)  # (n, H, W * O)
                    if len(block) == 1:
                        lines = row_taps.T @ block[0]
                    else:
                        lines = grad.new_empty(row_taps.shape[1], len(block), block.shape[2])
                        taps = row_taps.T.expand(len(block), -1, -1)
                        torch.bmm(taps, block, out=lines.transpose(0, 1))
                    lines = lines.view(low_lines, -1, channels)  # (3 * h * n, W, O)
                    window = grad_taps[:, 3 * low_columns.start : 3 * low_columns.stop]
                    window += torch.matmul(column_taps.T, lines)
                grad_taps = grad_taps.view(3, -1, 3 * channels)  # (3, h * n * w, 3 * O)
                if ctx.needs_input_grad[1]:
                    grad_rows = grad_image[:, low_rows].transpose(0, 1)  # (h, n, w, C)
                    single = len(target) == 1
                    lines = grad_rows if single else grad_rows.new_empty(grad_rows.shape)
                    grad_lines = lines.view(-1, x.shape[1])  # (h * n * w, C)
                    torch.mm(grad_taps[0], products[0], out=grad_lines)
                    for taps, product in zip(grad_taps[1:], products[1:], strict=True):
                        grad_lines.addmm_(taps, product)
                    if not single:
                        grad_rows.copy_(lines)
                if ctx.needs_input_grad[2]:
                    lines = image[:, low_rows].transpose(0, 1).flatten(0, 2)  # (h * n * w, C)
                    for taps, grad_product in zip(grad_taps, grad_products, strict=True):
                        grad_product.addmm_(taps.T, lines)
        grad_weight = grad_products.unflatten(1, (3, channels)).permute(2, 3, 0, 1)
        return (
            grad if ctx.needs_input_grad[0] else None,
            grad_x if ctx.needs_input_grad[1] else None,
            grad_weight if ctx.needs_input_grad[2] else None,
            None,
        )
