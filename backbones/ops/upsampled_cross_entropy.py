"""Compute the cross entropy of bilinearly enlarged logits, without the full-size logits.

A segmentor's loss enlarges logits (N, K, h, w) to the size of the labels (N, H, W), 16 to 1024
times as many numbers, and each of softmax, its gradient and the interpolation's gradient goes over
as many again. Here a few rows are enlarged at a time, their losses added up, and their gradient
carried back to the lines of the low map while it is in the cache. As the loss is a sum, whose
gradient is its logits' gradient times a number, backward has nothing left to compute; Liger Kernel
(arXiv:2410.10989) does the same for the last layer of a language model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .caches import own_caches_bytes
from .eager import eager
from .interpolation import interpolation_matrix, interpolation_sources

# Enlarged logits at once: in float32 they fill the cores' own caches. Tuned on two cores of an AMD
# EPYC (Zen 4, 1 MiB of L2 each); results are right with any number.
BLOCK = own_caches_bytes() // 4
GPU_BLOCK = 2**26  # 256 MiB


@eager  # its blocks are written in place
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum the cross entropy of all pixels, and count those whose label has the highest logit.

    Computed in float32, or in float64 for logits of float64, also under autocast.

    Args:
        logits: (N, K, h, w), of any layout; best in channels-last.
        labels: (N, H, W) int64, from 0 to K - 1 or `ignore_index`.
        class_weight: (K,) factors of each class's pixels.
        ignore_index: label of pixels that count as nothing.
        align_corners: as in `torch.nn.functional.interpolate`.

    Returns:
        The sum, which can be differentiated once, and the count, both of no dimension and equal to
        those of `upsampled_cross_entropy_reference`.

    Raises:
        RuntimeError: a label is of no class.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _UpsampledCrossEntropy.apply(
            logits, labels, class_weight, ignore_index, align_corners
        )


def upsampled_cross_entropy_reference(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Define `upsampled_cross_entropy`: enlarge, compare."""
    size = labels.shape[1:]
    enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    loss = F.cross_entropy(
        enlarged, labels, class_weight, ignore_index=ignore_index, reduction="sum"
    )
    return loss, (enlarged.argmax(dim=1) == labels).sum()


def _row_blocks(low: int, high: int, rows: int, align_corners: bool, like: Tensor) -> list[tuple]:
    """Return blocks of rows: (output rows, low lines between them, coefficients (rows, lines))."""
    matrix = interpolation_matrix(low, high, align_corners).to(like)
    sources = interpolation_sources(low, high, align_corners)
    blocks = []
    for start in range(0, high, rows):
        out = slice(start, min(start + rows, high))
        # Rounding may take a position for the one before or after; its coefficient is 0.
        lines = slice(max(sources[out.start] - 1, 0), min(sources[out.stop - 1] + 3, low))
        blocks.append((out, lines, matrix[out, lines]))
    return blocks


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        labels: Tensor,
        class_weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_grad = ctx.needs_input_grad[0]
        images, classes, low_height, low_width = logits.shape
        height, width = labels.shape[1:]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        low = logits.to(dtype).contiguous(memory_format=torch.channels_last)
        ignored = labels == ignore_index
        labels = labels.masked_fill(ignored, 0)
        weights = None if class_weight is None else class_weight.to(dtype)

        rows = max((GPU_BLOCK if low.is_cuda else BLOCK) // (width * classes), 1)
        blocks = _row_blocks(low_height, height, rows, align_corners, low)
        buffer = low.new_empty(min(rows, height), width * classes)
        losses, counts = [], []
        if wants_grad:
            grad = torch.empty_like(low)
            # Of the lines that are enlarged in width alone; channels-last.
            grad_lines = low.new_empty(1, low_height, width, classes).permute(0, 3, 1, 2)
        size = (low_height, width)
        for i in range(images):
            image = low[i : i + 1]
            lines = F.interpolate(image, size, mode="bilinear", align_corners=align_corners)
            lines = _rows(lines)  # (h, W * K)
            if wants_grad:
                grad_lines.zero_()
            for out, between, taps in blocks:
                block = torch.mm(taps, lines[between], out=buffer[: len(taps)])
                block = block.view(-1, classes)  # (rows * W, K)
                label, skip = labels[i, out].view(-1, 1), ignored[i, out].view(-1, 1)
                block -= block.amax(dim=1, keepdim=True)
                found = block.gather(1, label)
                total = block.exp_().sum(dim=1, keepdim=True)
                loss = (total.log() - found).masked_fill_(skip, 0)
                scale = (
                    (~skip).to(dtype) if weights is None else weights[label].masked_fill(skip, 0)
                )
                losses.append((loss * scale).sum(dtype=torch.float64))
                counts.append((found == 0).logical_and_(~skip).sum())
                if wants_grad:
                    block *= scale / total
                    block.scatter_add_(1, label, -scale)
                    _rows(grad_lines)[between].addmm_(taps.T, block.view(len(taps), -1))
            if wants_grad and low.is_cuda:  # whose kernel adds in no fixed order
                grad_rows = grad_lines.permute(0, 2, 3, 1)  # (1, h, W, K)
                columns = interpolation_matrix(low_width, width, align_corners).to(low)
                grad[i : i + 1] = torch.matmul(columns.T, grad_rows).permute(0, 3, 1, 2)
            elif wants_grad:
                grad[i : i + 1] = torch.ops.aten.upsample_bilinear2d_backward(
                    grad_lines, size, image.shape, align_corners
                )
        if wants_grad:
            ctx.save_for_backward(grad.to(logits.dtype))
        count = torch.stack(counts).sum()
        ctx.mark_non_differentiable(count)
        return torch.stack(losses).sum().to(dtype), count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_sum: Tensor, _) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_sum.to(grad), None, None, None, None


def _rows(lines: Tensor) -> Tensor:
    """Return the view (h, W * K) of one channels-last map (1, K, h, W)."""
    return lines.permute(0, 2, 3, 1)[0].flatten(1)
