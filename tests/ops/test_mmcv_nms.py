"""NMS, soft-NMS and nms_match against plain implementations."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from support.mmcv_ops import HALVES, gpu

from backbones.openmmlab import mmcv_ops

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops


def exact_iou(a, b, offset):
    """IoU of two integer boxes as a fraction, 0 where neither has an area."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - width * height
    return Fraction(width * height, union) if union else Fraction(0)


def plain_nms(boxes, scores, threshold: Fraction, offset):
    """Greedy NMS in exact arithmetic on integer boxes; of equal scores the first comes first."""
    boxes = [[int(v) for v in box] for box in boxes]
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        if all(exact_iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def integer_boxes(count: int, extent: int = 12, seed: int = 0):
    """Boxes whose IoU is often exactly a threshold, some without area; scores with ties."""
    generator = np.random.default_rng(seed)
    start = generator.integers(0, extent, (count, 2))
    size = generator.integers(0, extent, (count, 2))
    boxes = torch.from_numpy(np.concatenate([start, start + size], axis=1)).float()
    return boxes, torch.from_numpy(generator.integers(1, 33, count)).float() / 64


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [Fraction(1, 2), Fraction(3, 5), Fraction(7, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_nms_equals_the_definition(device, dtype, threshold, offset):
    boxes, scores = integer_boxes(200)
    expected = plain_nms(boxes, scores, threshold, offset)
    assert 10 < len(expected) < 190
    dets, kept = mmcv.ops.nms(
        boxes.to(device, dtype), scores.to(device, dtype), float(threshold), offset=offset
    )
    assert kept.tolist() == expected and kept.dtype == torch.int64
    assert dets.dtype == dtype
    assert torch.equal(dets.cpu().float(), torch.cat([boxes, scores[:, None]], 1)[expected])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_nms_keeps_a_box_whose_iou_is_the_threshold(threshold):
    tenths = round(threshold * 10)
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, tenths], [0, 20, 10, 30], [0, 20, 10, 30.0]])
    _, kept = mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), threshold)
    assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", HALVES)
def test_nms_of_large_half_boxes_needs_float32(dtype):
    # 255 + 1 - 1 and areas of 65025 and 64770 do not exist in these dtypes.
    boxes = torch.tensor([[1, 1, 255, 255], [1, 2, 255, 255], [1, 1, 255, 254], [2, 1, 255, 255]])
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1])
    threshold = Fraction(254, 255)
    assert plain_nms(boxes, scores, threshold, 1) == [0, 1, 2, 3]
    for limit, expected in ((float(threshold), [0, 1, 2, 3]), (0.996, [0])):
        _, kept = mmcv.ops.nms(boxes.to(dtype), scores.to(dtype), limit, offset=1)
        assert kept.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_nms_of_fractional_boxes(device, dtype):
    corners = torch.rand(300, 2, dtype=torch.float64) * 60
    boxes = torch.cat([corners, corners + 1 + torch.rand(300, 2, dtype=torch.float64) * 30], dim=1)
    scores = torch.rand(300, dtype=torch.float64)
    for offset in (0, 1):
        thousandths = (boxes * 1000).round()
        expected = plain_nms(thousandths, scores, Fraction(1, 2), 1000 * offset)
        inputs = (t.to(device, dtype) for t in (thousandths / 1000, scores))
        _, kept = mmcv.ops.nms(*inputs, 0.5, offset=offset)
        assert kept.tolist() == expected and 20 < len(expected) < 280


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_nms_of_nothing(device, offset, dtype):
    boxes = torch.zeros(0, 4, dtype=dtype, device=device)
    dets, kept = mmcv.ops.nms(boxes, boxes[:, 0], 0.5, offset=offset)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    assert dets.device == boxes.device and kept.device == boxes.device


def test_nms_of_float32_boxes_with_bf16_scores():
    boxes, scores = integer_boxes(100)
    _, kept = mmcv.ops.nms(boxes, scores.bfloat16(), 0.5)
    assert kept.tolist() == plain_nms(boxes, scores, Fraction(1, 2), 0)


def test_nms_filters_and_limits():
    boxes, scores = integer_boxes(100)
    above = (scores > 0.25).nonzero()[:, 0]
    expected = above[plain_nms(boxes[above], scores[above], Fraction(1, 2), 0)]
    _, kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.25, max_num=7)
    assert kept.tolist() == expected[:7].tolist()


@pytest.mark.parametrize("split_thr", [10000, 10])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_batched_nms_keeps_classes_apart(device, split_thr):
    boxes, _ = integer_boxes(60)
    boxes = boxes.repeat(3, 1)  # the same boxes in three classes
    scores = torch.randperm(180).float() / 180
    classes = torch.tensor([0, 1, 4]).repeat_interleave(60)
    expected = []
    for label in (0, 1, 4):
        members = (classes == label).nonzero()[:, 0]
        expected += members[plain_nms(boxes[members], scores[members], Fraction(1, 2), 0)].tolist()
    expected.sort(key=lambda i: -float(scores[i]))

    config = dict(type="nms", iou_threshold=0.5, split_thr=split_thr)
    inputs = (t.to(device) for t in (boxes, scores, classes))
    dets, kept = mmcv.ops.batched_nms(*inputs, config)
    assert kept.tolist() == expected
    assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], dim=1)[expected])

    inputs = (t.to(device) for t in (boxes, scores, classes))
    _, kept = mmcv.ops.batched_nms(*inputs, dict(config, class_agnostic=True, split_thr=10000))
    assert kept.tolist() == plain_nms(boxes, scores, Fraction(1, 2), 0) != expected


# Soft-NMS


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Soft-NMS box by box in float32, leaving boxes swapped with the last as mmcv does."""
    threshold, sigma, min_score = (np.float32(v) for v in (threshold, sigma, min_score))
    left = [
        [np.array(box, dtype=np.float32), np.float32(score), i]
        for i, (box, score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True))
    ]
    dets, picked = [], []
    while left:
        best = max(range(len(left)), key=lambda i: left[i][1])  # the first of equal ones
        left[0], left[best] = left[best], left[0]
        box, score, index = left.pop(0)
        dets.append([*box, score])
        picked.append(index)
        position = 0
        while position < len(left):
            other = left[position]
            sides = np.minimum(box[2:], other[0][2:]) - np.maximum(box[:2], other[0][:2]) + offset
            shared = np.prod(np.maximum(sides, 0))
            areas = (
                np.prod(box[2:] - box[:2] + offset),
                np.prod(other[0][2:] - other[0][:2] + offset),
            )
            union = areas[0] + areas[1] - shared
            iou = shared / union if union > 0 else np.float32(0)
            if method == "gaussian":
                other[1] *= np.exp(-(iou * iou) / sigma)
            elif iou >= threshold:
                other[1] *= 0 if method == "naive" else 1 - iou
            if other[1] < min_score:
                left[position] = left[-1]
                left.pop()
            else:
                position += 1
    return np.array(dets, dtype=np.float32).reshape(-1, 5), picked


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("min_score", [0.001, 0.1])
@pytest.mark.parametrize("ties", [False, True])
def test_soft_nms_equals_the_plain_one(ties, min_score, method, offset):
    boxes, scores = integer_boxes(150)
    if not ties:
        scores = torch.rand(150)
    expected, picked = plain_soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
    assert 5 < len(picked) and (
        method == "naive" or (expected[:, 4] != scores[picked].numpy()).any()
    )
    assert kept.tolist() == picked and kept.dtype == torch.int64
    np.testing.assert_allclose(dets.numpy(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("dtype", HALVES)
def test_soft_nms_of_halves_is_rounded_once(dtype, method):
    boxes, scores = integer_boxes(80)
    expected, picked = plain_soft_nms(boxes, scores, 0.3, 0.5, 0.001, method, 0)
    dets, kept = mmcv.ops.soft_nms(boxes.to(dtype), scores.to(dtype), 0.3, 0.5, method=method)
    assert kept.tolist() == picked and dets.dtype == dtype
    np.testing.assert_allclose(dets.float(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_soft_nms_leaves_its_inputs_alone():
    boxes, scores = integer_boxes(50)
    copies = boxes.clone(), scores.clone()
    mmcv.ops.soft_nms(boxes, scores)
    mmcv.ops.soft_nms(boxes.numpy(), scores.numpy())
    assert torch.equal(boxes, copies[0]) and torch.equal(scores, copies[1])


def test_soft_nms_of_nothing_and_of_boxes_without_area():
    dets, kept = mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    for method in ("naive", "linear", "gaussian"):
        points = torch.tensor([[3.0, 4, 3, 4]]).repeat(3, 1)
        dets, kept = mmcv.ops.soft_nms(points, torch.tensor([0.2, 0.4, 0.3]), method=method)
        assert kept.tolist() == [1, 2, 0]
        assert torch.equal(dets[:, 4], torch.tensor([0.4, 0.3, 0.2]))


def test_batched_soft_nms_keeps_classes_apart():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10.0]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    config = dict(type="soft_nms", iou_threshold=0.5, method="linear")
    for split_thr in (10000, 1):
        dets, kept = mmcv.ops.batched_nms(boxes, scores, classes, dict(config, split_thr=split_thr))
        assert kept.tolist() == [0, 2, 1]
        torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7, 0.8 * 0.2]))


# Matching


def plain_nms_match(boxes, scores, threshold: Fraction):
    boxes = [[int(v) for v in box] for box in boxes]
    left = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))
    groups = []
    while left:
        kept = left.pop(0)
        group = [i for i in left if exact_iou(boxes[i], boxes[kept], 0) >= threshold]
        left = [i for i in left if i not in group]
        groups.append([kept, *group])
    return groups


@pytest.mark.parametrize("threshold", [Fraction(1, 2), Fraction(3, 5), Fraction(1, 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_nms_match_equals_the_definition(device, dtype, threshold):
    boxes, scores = integer_boxes(150)
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    expected = plain_nms_match(boxes, scores, threshold)
    assert 5 < len(expected) < 145
    matched = mmcv.ops.nms_match(dets.to(device, dtype), float(threshold))
    assert [group.tolist() for group in matched] == expected
    assert all(group.dtype == torch.int64 and group.device.type == device for group in matched)


def test_nms_match_of_arrays_and_of_nothing():
    boxes, scores = integer_boxes(40)
    dets = torch.cat([boxes, scores[:, None]], dim=1).numpy()
    matched = mmcv.ops.nms_match(dets, 0.5)
    assert [g.tolist() for g in matched] == plain_nms_match(boxes, scores, Fraction(1, 2))
    assert mmcv.ops.nms_match(dets[:0], 0.5) == []
    assert mmcv.ops.nms_match(torch.zeros(0, 5), 0.5) == []
