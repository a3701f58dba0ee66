"""Compute a convolution at the pixels of a mask: gather columns, and scatter the results."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill col (C * kernel_h * kernel_w, M) with the pixels under the kernel at M positions.

    im: (1, C, H, W), zero outside; mask_h_idx, mask_w_idx: (M,) int64, rows and columns of the
    output, below H and W.

    mmcv 2.3.6, ops/csrc/common/cuda/masked_conv2d_cuda_kernel.cuh.
    """
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put col (C, M) at M positions of im (1, C, height, width) and leave the others."""
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)
