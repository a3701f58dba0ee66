"""nms, soft-NMS and RoIAlign against plain implementations, and what stands in for mmcv._ext."""

import importlib.util
import math
import os
import pkgutil
import subprocess
import sys
import textwrap
from fractions import Fraction
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from backbones.openmmlab import mmcv_ops

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops

REPOSITORY = Path(__file__).parents[2]
HALVES = [torch.float16, torch.bfloat16]
gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


# RoIAlign


def bilinear_weights(points: torch.Tensor, size: int) -> torch.Tensor:
    """(P, size) weights of the pixels for sampling at each of (P,) coordinates."""
    inside = (points >= -1) & (points <= size)
    points = points.clamp(0, size - 1)
    pixels = torch.arange(size, dtype=points.dtype)
    weights = (1 - (points[:, None] - pixels).abs()).clamp(min=0)
    return weights * inside[:, None]


def plain_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    """RoIAlign from its definition, in the dtype of features, differentiable."""
    height, width = features.shape[-2:]
    pooled = []
    for roi in rois:
        x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0.0) for v in roi[1:])
        axes = []
        for start, end, bins, pixels in (
            (y1, y2, size[0], height),
            (x1, x2, size[1], width),
        ):
            length = end - start if aligned else max(end - start, 1.0)
            count = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length / bins), 0)
            points = [
                start + (b + (i + 0.5) / count) * length / bins
                for b in range(bins)
                for i in range(count)
            ]
            points = torch.tensor(points, dtype=features.dtype)
            axes.append((bilinear_weights(points, pixels), count))
        (rows, count_y), (columns, count_x) = axes
        samples = rows @ features[int(roi[0])] @ columns.T  # (C, bins_y*count_y, bins_x*count_x)
        samples = samples.reshape(features.shape[1], size[0], count_y, size[1], count_x)
        pooled.append(samples.sum(dim=(2, 4)) / max(count_y * count_x, 1))
    return torch.stack(pooled) if pooled else features.new_zeros(0, features.shape[1], *size)


def images_and_rois(dtype=torch.float64):
    features = torch.randn(2, 3, 13, 17)
    rois = torch.tensor(
        [
            [0, 3.1, 5.2, 40.7, 33.9],
            [1, 0.0, 0.0, 68.0, 52.0],
            [1, -21.3, -9.4, 25.8, 30.1],
            [0, 50.2, 40.3, 90.9, 75.1],
            [1, 200.0, 10.0, 240.0, 30.0],  # outside
            [0, 20.5, 11.5, 20.5, 11.5],  # a point
            [1, 20.5, 11.5, 44.0, 11.5],  # a line
            [0, 60.1, 12.2, 20.3, 40.4],  # x reversed
            [1, 60.1, 40.4, 20.3, 12.2],  # both reversed
            [0, 30.2, 30.3, 31.4, 31.5],  # less than a pixel
        ]
    )
    return features.to(dtype), rois.to(dtype)


def with_gradient(roi_align, features, *args):
    """The pooled map, and the gradient of a sum of it with weights that every dtype has."""
    features = features.detach().requires_grad_()
    pooled = roi_align(features, *args)
    weights = (torch.arange(pooled.numel()) % 17 - 7).reshape(pooled.shape) / 8
    pooled.backward(weights.to(pooled))
    return pooled.detach(), features.grad


def mmcv_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    return mmcv.ops.roi_align(features, rois, size, scale, sampling_ratio, "avg", aligned)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
@pytest.mark.parametrize("scale", [0.25, 1 / 16])
def test_roi_align_equals_the_definition(size, scale, sampling_ratio, aligned):
    features, rois = images_and_rois()
    args = rois, size, scale, sampling_ratio, aligned
    pooled, gradient = with_gradient(mmcv_roi_align, features, *args)
    expected, expected_gradient = with_gradient(plain_roi_align, features, *args)
    assert expected.flatten(1).any(dim=1).sum() >= 4 and expected_gradient.any()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_roi_align_equals_torchvision(device, sampling_ratio, aligned):
    features, rois = (t.to(device) for t in images_and_rois(torch.float32))
    if sampling_ratio == 0:
        rois = rois[(rois[:, 3:] >= rois[:, 1:3]).all(dim=1)]  # its CPU kernel dies of the others
    args = rois, (7, 7), 0.25, sampling_ratio, aligned
    pooled, gradient = with_gradient(mmcv_roi_align, features, *args)
    expected, expected_gradient = with_gradient(torchvision.ops.roi_align, features, *args)
    assert pooled.any() and gradient.any()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    tolerance = 0 if device == "cpu" else 1e-5  # atomic sums
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_roi_align_of_halves_is_rounded_once(device, dtype, sampling_ratio, aligned):
    features, rois = (t.to(dtype) for t in images_and_rois())
    args = (7, 7), 0.25, sampling_ratio, aligned
    ours = with_gradient(mmcv_roi_align, features.to(device), rois.to(device), *args)
    plain = with_gradient(plain_roi_align, features.float(), rois, *args)
    exact = with_gradient(plain_roi_align, features.double(), rois, *args)
    for name, a, b, c in zip(("pooled", "gradient"), ours, plain, exact, strict=True):
        assert a.dtype == dtype
        error = (a.cpu().double() - c).abs().max()
        plain_error = (b.to(dtype).double() - c).abs().max()
        assert 0 < error <= 2 * plain_error + torch.finfo(dtype).eps, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_roi_align_without_rois(dtype):
    features, rois = images_and_rois(dtype)
    features.requires_grad_()
    pooled = mmcv_roi_align(features, rois[:0], (7, 5), 0.25, 0, True)
    assert pooled.shape == (0, 3, 7, 5) and pooled.dtype == dtype
    pooled.sum().backward()
    assert features.grad.shape == features.shape and not features.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_roi_align_in_other_layouts(layout, dtype):
    features, rois = images_and_rois(dtype)
    args = rois, (7, 7), 0.25, 2, True
    expected = with_gradient(mmcv_roi_align, features, *args)
    if layout == "channels_last":
        other = features.contiguous(memory_format=torch.channels_last)
    else:
        other = torch.stack([features, torch.full_like(features, torch.nan)], dim=-1)[..., 0]
    assert not other.is_contiguous()
    for a, b in zip(with_gradient(mmcv_roi_align, other, *args), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_roi_align_takes_the_gradient_of_a_permuted_map():
    features, rois = images_and_rois()
    weights = torch.randn(len(rois), 7, 5, 3, dtype=torch.float64)
    gradients = []
    for roi_align in (mmcv_roi_align, plain_roi_align):
        leaf = features.clone().requires_grad_()
        pooled = roi_align(leaf, rois, (7, 5), 0.25, 2, True)
        (pooled.permute(0, 2, 3, 1) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_roi_align_under_autocast():
    features, rois = images_and_rois(torch.bfloat16)
    args = rois, (7, 7), 0.25, 2, True
    expected = with_gradient(mmcv_roi_align, features, *args)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = mmcv_roi_align(features, *args)
    torch.testing.assert_close(pooled, expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("fill", [torch.nan, 7.0])
def test_roi_align_overwrites_the_buffers(fill):
    features, rois = images_and_rois(torch.float32)
    call = dict(
        aligned_height=7,
        aligned_width=5,
        spatial_scale=0.25,
        sampling_ratio=2,
        pool_mode=1,
        aligned=True,
    )
    unused = features.new_zeros(0)
    output = torch.full((len(rois), 3, 7, 5), fill)
    mmcv_ops.roi_align_forward(features, rois, output, unused, unused, **call)
    torch.testing.assert_close(output, mmcv_roi_align(features, rois, (7, 5), 0.25, 2, True))
    gradient = torch.full_like(features, fill)
    mmcv_ops.roi_align_backward(torch.ones_like(output), rois, unused, unused, gradient, **call)
    leaf = features.clone().requires_grad_()
    plain_roi_align(leaf, rois, (7, 5), 0.25, 2, True).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_roi_align_by_maximum_raises():
    features, rois = images_and_rois(torch.float32)
    with pytest.raises(RuntimeError, match="roi_align_forward with pool_mode 'max'.*pip install"):
        mmcv.ops.roi_align(features, rois, (7, 7), 0.25, 2, "max", True)


# NMS


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


# The module in place of mmcv._ext


def test_an_op_that_is_not_there_raises_with_its_name():
    convolution = mmcv.ops.DeformConv2d(2, 2, 3)
    with pytest.raises(RuntimeError) as error:
        convolution(torch.zeros(1, 2, 16, 16), torch.zeros(1, 18, 14, 14))
    message = str(error.value)
    assert message.startswith("mmcv op 'deform_conv_forward' is not available: ")
    assert "\n" not in message
    assert message.endswith(
        f"--no-build-isolation --no-binary onedl-mmcv onedl-mmcv=={mmcv.__version__}"
    )


def test_the_stand_in_is_a_module_like_others():
    extension = sys.modules["mmcv._ext"]
    assert extension.__name__ == "mmcv._ext"
    assert importlib.util.find_spec("mmcv._ext") is extension.__spec__
    assert pkgutil.get_loader("mmcv._ext") is extension.__spec__.loader is not None
    assert repr(extension) == "<module 'mmcv._ext' (backbones.openmmlab.mmcv_ops)>"
    assert callable(extension.some_op) and extension.some_op.__name__ == "some_op"
    for name in ("__file__", "__path__", "__wrapped__", "_repr_html_"):
        assert not hasattr(extension, name)


def test_install_again_changes_nothing():
    extension = sys.modules["mmcv._ext"]
    assert mmcv_ops.install() is True
    assert sys.modules["mmcv._ext"] is extension


def test_environment_reports():
    import mmdet.utils
    import mmseg.utils
    from mmcv.utils.env import collect_env
    from mmengine.utils.dl_utils import collect_env as mmengine_collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    report = collect_env()
    assert report["MMCV Compiler"] == "n/a (torchvision stand-in)"
    assert report["MMCV CUDA Compiler"] == "n/a (torchvision stand-in)"
    assert mmengine_collect_env()["PyTorch"] == torch.__version__
    assert mmdet.utils.collect_env()["MMDetection"].startswith("3.")
    assert mmseg.utils.collect_env()["MMSegmentation"].startswith("1.")
    assert mmcv_full_available()


def run_python(code: str, *path: Path) -> str:
    """What a fresh interpreter prints, with these folders before all others on its path."""
    folders = os.pathsep.join(map(str, path))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=dict(os.environ, PYTHONPATH=folders),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# By its path: the package around it may import mmcv.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("mmcv_ops", {mmcv_ops.__file__!r})
mmcv_ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mmcv_ops)
"""


@pytest.mark.parametrize("compiled", [True, False])
def test_install_steps_aside_for_a_compiled_extension(compiled, tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('install imported mmcv')\n")
    if compiled:
        (package / f"_ext{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    printed = run_python(
        LOAD + "print(mmcv_ops.install(), mmcv_ops.install(), 'mmcv._ext' in sys.modules,"
        " 'torchvision' in sys.modules)",
        tmp_path,
    )
    assert printed.split() == ["False", "False", "False", "False"] if compiled else [
        "True", "True", "True", "False"
    ]  # fmt: skip


def test_install_leaves_a_loaded_extension_and_a_missing_mmcv_alone():
    printed = run_python(
        LOAD
        + """
sys.modules["mmcv"] = None
print(mmcv_ops.install(), "mmcv._ext" in sys.modules)
loaded = sys.modules["mmcv._ext"] = type(sys)("mmcv._ext")
print(mmcv_ops.install(), sys.modules["mmcv._ext"] is loaded)
"""
    )
    assert printed.split() == ["False", "False", "False", "True"]


@pytest.mark.slow
def test_the_model_zoos_import_in_a_fresh_interpreter():
    printed = run_python(
        """
        import sys

        from backbones.openmmlab import mmcv_ops

        sys.modules["mmpretrain"] = None  # its own import fails beside transformers 5
        assert mmcv_ops.install()
        import mmdet.models
        import mmengine.runner
        import mmseg.models
        from mmdet.registry import MODELS as detectors
        from mmseg.registry import MODELS as segmentors

        print(detectors.get("CascadeRCNN").__name__, segmentors.get("UPerHead").__name__)
        """,
        REPOSITORY,
    )
    assert printed.split() == ["CascadeRCNN", "UPerHead"]
