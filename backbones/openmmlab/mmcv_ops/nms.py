"""Compute non-maximum suppression, soft-NMS and NMS that records what it suppresses."""

import numpy as np
import torch
from torch import Tensor

from .precision import compute_dtype
from .torchvision_kernels import torchvision_kernels


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices (K,) int64 of the boxes that greedy NMS keeps, by descending score.

    boxes: (N, 4), x1, y1, x2, y2; scores: (N,). Their floating dtypes may differ; fp16 and bf16 are
    computed in float32. A box goes when its IoU with a kept one is above iou_threshold; widths and
    heights are x2 - x1 + offset. Of equal scores the first comes first.

    mmcv 2.3.6, ops/csrc/pytorch/cpu/nms.cpp, nms_cpu.
    """
    dtype = compute_dtype(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:
        # The same sizes and overlaps: min(x2 + 1, x2' + 1) - max(x1, x1')
        #                            = min(x2, x2') - max(x1, x1') + 1.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # torchvision compares float32 IoUs with a double. With the threshold rounded as they are, a box
    # whose IoU equals it stays, as in mmcv.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torchvision_kernels().nms(boxes, scores.to(dtype), threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Fill dets[:K] with boxes and decayed scores in the order of picking; return indices (K,).

    boxes: (N, 4), x1, y1, x2, y2; scores: (N,); dets: (N, 5); all on the CPU. fp16 and bf16 are
    computed in float32. After every pick the scores of the boxes left are multiplied by a weight of
    their IoU with it, and boxes below min_score leave. The weight is, for method 0 (naive), 0 where
    IoU >= iou_threshold; for 1 (linear), 1 - IoU there; for 2 (gaussian), exp(-IoU^2 / sigma).
    Equal scores are picked in mmcv's order. Two boxes without area have IoU 0, where mmcv divides
    0 by 0.

    Bodla et al., Soft-NMS, 2017, Fig. 2; mmcv 2.3.6, ops/csrc/pytorch/cpu/nms.cpp, softnms_cpu.
    """
    dtype = compute_dtype(boxes, scores)
    corners = boxes.detach().to(dtype).numpy()
    score = scores.detach().to(dtype, copy=True).numpy()
    area = (corners[:, 2:] - corners[:, :2] + offset).prod(axis=1)

    order = np.arange(len(score))
    picks = 0
    while picks < len(order):
        left = order[picks:]
        best = score[left].argmax()
        left[0], left[best] = left[best], left[0]
        pick, rest = left[0], left[1:]

        shared_min = np.maximum(corners[pick, :2], corners[rest, :2])
        shared_max = np.minimum(corners[pick, 2:], corners[rest, 2:])
        intersection = np.maximum(shared_max - shared_min + offset, 0).prod(axis=1)
        union = area[pick] + area[rest] - intersection
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        if method == 2:
            score[rest] *= np.exp(-(iou * iou) / sigma)
        else:
            score[rest] *= np.where(iou >= iou_threshold, 0 if method == 0 else 1 - iou, 1)

        # mmcv fills the place of a box that leaves with the last one that stays: the order in which
        # equal scores are picked later depends on it.
        stays = ~(score[rest] < min_score)
        count = int(stays.sum())
        rest[:count][~stays[:count]] = rest[count:][stays[count:]][::-1]
        picks += 1
        order = order[: picks + count]

    dets[: len(order), :4] = torch.from_numpy(corners[order])
    dets[: len(order), 4] = torch.from_numpy(score[order])
    return torch.from_numpy(order)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return for each box that greedy NMS keeps its index and those of the boxes it suppresses.

    dets: (N, 5), x1, y1, x2, y2 and the score, on the CPU. The kept boxes come by descending score,
    and in each list so do the others; of equal scores the first comes first. Unlike `nms` a box
    goes when its IoU equals the threshold, too. Halves are computed in float32.

    mmcv 2.3.6, ops/csrc/pytorch/cpu/nms.cpp, nms_match_cpu.
    """
    dtype = compute_dtype(dets)
    dets = dets.detach().to(dtype)
    order = dets[:, 4].argsort(descending=True, stable=True)
    corners = dets[order, :4]
    area = (corners[:, 2:] - corners[:, :2]).prod(dim=1)
    threshold = torch.tensor(iou_threshold, dtype=dtype)
    left = torch.ones(len(dets), dtype=torch.bool)
    groups = []
    for pick in range(len(dets)):
        if not left[pick]:
            continue
        shared_min = torch.maximum(corners[pick, :2], corners[pick + 1 :, :2])
        shared_max = torch.minimum(corners[pick, 2:], corners[pick + 1 :, 2:])
        intersection = (shared_max - shared_min).clamp(min=0).prod(dim=1)
        iou = intersection / (area[pick] + area[pick + 1 :] - intersection)
        goes = (iou >= threshold) & left[pick + 1 :]
        left[pick + 1 :] &= ~goes
        members = torch.cat([order[pick : pick + 1], order[pick + 1 :][goes]])
        groups.append(members.tolist())
    return groups
