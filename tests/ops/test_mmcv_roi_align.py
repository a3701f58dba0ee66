"""RoIAlign against its definition and torchvision's, by mean and by maximum."""

import math

import pytest
import torch
import torchvision
from support.mmcv_ops import HALVES, gpu

from backbones.openmmlab import mmcv_ops

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops


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
    forward, backward = (mmcv_ops.OPERATORS[f"roi_align_{way}"] for way in ("forward", "backward"))
    forward(features, rois, output, unused, unused, **call)
    torch.testing.assert_close(output, mmcv_roi_align(features, rois, (7, 5), 0.25, 2, True))
    gradient = torch.full_like(features, fill)
    backward(torch.ones_like(output), rois, unused, unused, gradient, **call)
    leaf = features.clone().requires_grad_()
    plain_roi_align(leaf, rois, (7, 5), 0.25, 2, True).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


# By maximum


def plain_roi_align_max(features, rois, size, scale, sampling_ratio, aligned):
    """The greatest of each bin's bilinear samples, of equal ones the first; 0 of none."""
    height, width = features.shape[-2:]
    pooled = []
    for roi in rois:
        x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0.0) for v in roi[1:])
        axes = []
        for start, end, bins, pixels in ((y1, y2, size[0], height), (x1, x2, size[1], width)):
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
        samples = rows @ features[int(roi[0])] @ columns.T
        samples = samples.reshape(features.shape[1], size[0], count_y, size[1], count_x)
        samples = samples.permute(0, 1, 3, 2, 4).flatten(3)
        empty = samples.shape[3] == 0
        pooled.append(
            samples.sum(3) if empty else samples.gather(3, first_maximum(samples))[..., 0]
        )
    return torch.stack(pooled) if pooled else features.new_zeros(0, features.shape[1], *size)


def first_maximum(samples):
    return (samples == samples.amax(3, keepdim=True)).int().argmax(3, keepdim=True)


def mmcv_roi_align_max(features, rois, size, scale, sampling_ratio, aligned):
    return mmcv.ops.roi_align(features, rois, size, scale, sampling_ratio, "max", aligned)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_roi_align_by_maximum_equals_the_definition(device, sampling_ratio, aligned):
    features, rois = images_and_rois()
    args = (3, 5), 0.25, sampling_ratio, aligned
    pooled, gradient = with_gradient(
        mmcv_roi_align_max, features.to(device), rois.to(device), *args
    )
    expected, expected_gradient = with_gradient(plain_roi_align_max, features, rois, *args)
    assert expected.flatten(1).any(dim=1).sum() >= 4 and (expected < 0).any()
    torch.testing.assert_close(pooled.cpu(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", HALVES)
def test_roi_align_by_maximum_of_halves_is_rounded_once(dtype):
    features, rois = (t.to(dtype) for t in images_and_rois())
    rois = rois + torch.tensor([0, 100, 100, 100, 100]).to(dtype)  # where halves are coarse
    features = torch.nn.functional.pad(features, (26, 0, 26, 0))
    args = rois, (7, 7), 0.25, 2, True
    pooled, gradient = with_gradient(mmcv_roi_align_max, features, *args)
    expected, expected_gradient = with_gradient(
        mmcv_roi_align_max, features.float(), rois.float(), *args[1:]
    )
    assert pooled.dtype == gradient.dtype == dtype and pooled.any()
    assert torch.equal(pooled, expected.to(dtype))
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_gradcheck_of_roi_align_by_maximum():
    features, rois = images_and_rois()
    features = features[:, :2, :6, :7].clone().requires_grad_()
    rois = torch.tensor([[0, 1, 2, 23, 20], [1, -3, 4, 9, 30.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f: mmcv.ops.roi_align(f, rois, (2, 3), 0.25, 2, "max", True), features
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_roi_align_by_maximum_without_rois(dtype):
    features, rois = images_and_rois(dtype)
    features.requires_grad_()
    pooled = mmcv_roi_align_max(features, rois[:0], (7, 5), 0.25, 0, True)
    assert pooled.shape == (0, 3, 7, 5) and pooled.dtype == dtype
    pooled.sum().backward()
    assert features.grad.shape == features.shape and not features.grad.any()


def test_the_first_of_equal_samples_is_the_maximum():
    features = torch.ones(1, 1, 8, 8, requires_grad=True)
    rois = torch.tensor([[0, 0, 0, 8, 8.0]])
    mmcv_roi_align_max(features, rois, (1, 1), 1.0, 8, True).sum().backward()
    assert features.grad.nonzero().tolist() == [[0, 0, 0, 0]]
