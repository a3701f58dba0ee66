"""Deformable convolution, attention and RoI pooling against their definitions."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.mmcv_ops import HALVES, assert_rounded_once, gpu

from backbones.openmmlab import mmcv_ops
from benchmarks.gpu_branches import gpu_branches

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops

double = dict(dtype=torch.float64)


def bilinear(plane, y, x):
    """The bilinear value of plane (H, W) at tensors y and x, zero outside; differentiable."""
    height, width = plane.shape
    if not (-1 < float(y) < height and -1 < float(x) < width):
        return plane.sum() * 0 + y * 0 + x * 0
    top, left = math.floor(float(y)), math.floor(float(x))
    value = plane.new_zeros(())
    for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                value = value + share_y * share_x * plane[row, column]
    return value


# Convolution


def plain_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform):
    """Deformable convolution tap by tap; mask None for v1."""
    n, channels, height, width = x.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    taps = kernel_h * kernel_w
    # mmcv reads the values of an image in the order of the output's size.
    offset = offset.reshape(n, -1)[:, : deform * taps * 2 * out_h * out_w]
    offset = offset.reshape(n, deform, taps, 2, out_h, out_w)
    if mask is not None:
        mask = mask.reshape(n, -1)[:, : deform * taps * out_h * out_w]
        mask = mask.reshape(n, deform, taps, out_h, out_w)
    images = []
    for image in range(n):
        columns = []
        for channel in range(channels):
            group = channel // (channels // deform)
            for tap in range(taps):
                i, j = divmod(tap, kernel_w)
                for h in range(out_h):
                    for w in range(out_w):
                        dy, dx = offset[image, group, tap, :, h, w]
                        y = h * stride[0] - padding[0] + i * dilation[0] + dy
                        x_ = w * stride[1] - padding[1] + j * dilation[1] + dx
                        value = bilinear(x[image, channel], y, x_)
                        factor = 1 if mask is None else mask[image, group, tap, h, w]
                        columns.append(value * factor)
        columns = torch.stack(columns).view(groups, channels // groups * taps, out_h * out_w)
        product = weight.view(groups, out_channels // groups, -1) @ columns
        images.append(product.view(out_channels, out_h, out_w))
    output = torch.stack(images)
    return output if bias is None else output + bias[:, None, None]


SETTINGS = dict(
    plain=dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deform=1),
    groups=dict(stride=(1, 1), padding=(0, 1), dilation=(1, 1), groups=2, deform=2),
    strided=dict(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=1, deform=2),
    one_by_three=dict(stride=(1, 2), padding=(0, 0), dilation=(2, 1), groups=2, deform=1),
)


def convolution_inputs(setting, modulated, extra=(0, 0)):
    """x, offset, mask, weight and bias; offset and mask `extra` larger than the output."""
    kernel = (1, 3) if setting["stride"] == (1, 2) else (3, 3)
    deform = setting["deform"]
    x = torch.randn(2, 4, 3, 4, **double)
    weight = torch.randn(4, 4 // setting["groups"], *kernel, **double)
    size = [
        (x.shape[2 + a] + 2 * setting["padding"][a] - setting["dilation"][a] * (kernel[a] - 1) - 1)
        // setting["stride"][a] + 1 + extra[a]
        for a in range(2)
    ]  # fmt: skip
    taps = deform * math.prod(kernel)
    # Not at whole pixels, where there is no derivative, and some far outside.
    offset = torch.randn(2, 2 * taps, *size, **double).mul(1.7)
    offset = offset + (0.11 - (offset - offset.round())) * ((offset - offset.round()).abs() < 0.02)
    mask = torch.rand(2, taps, *size, **double) if modulated else None
    bias = torch.randn(4, **double) if modulated else None
    return x, offset, mask, weight, bias


def mmcv_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform):
    if mask is None:
        return mmcv.ops.deform_conv2d(x, offset, weight, stride, padding, dilation, groups, deform)
    return mmcv.ops.modulated_deform_conv2d(
        x, offset, mask, weight, bias, stride, padding, dilation, groups, deform
    )


def output_and_gradients(operator, inputs, setting):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    output = operator(*leaves, **setting)
    weights = (torch.arange(output.numel()) % 17 - 7).reshape(output.shape) / 8
    output.backward(weights.to(output))
    return [output.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_deform_conv_equals_the_definition(device, name, modulated):
    inputs = convolution_inputs(SETTINGS[name], modulated)
    expected = output_and_gradients(plain_deform_conv, inputs, SETTINGS[name])
    inputs = [None if t is None else t.to(device) for t in inputs]
    ours = output_and_gradients(mmcv_deform_conv, inputs, SETTINGS[name])
    for a, b in zip(ours, expected, strict=True):
        assert b.any()
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True])
def test_gradcheck_of_deform_conv(modulated):
    setting = SETTINGS["strided"]
    inputs = [t for t in convolution_inputs(setting, modulated) if t is not None]

    def convolve(*tensors):
        x, offset, *rest = tensors
        mask, weight, bias = rest if modulated else (None, *rest, None)
        return mmcv_deform_conv(x, offset, mask, weight, bias, **setting)

    assert torch.autograd.gradcheck(
        convolve, [t[:1].requires_grad_() if t.ndim == 4 and len(t) == 2 else t.requires_grad_()
                   for t in inputs], fast_mode=True
    )  # fmt: skip


@pytest.mark.parametrize("extra", [(1, 0), (4, 5)])
def test_offsets_of_another_size_are_read_as_mmcv_reads_them(extra):
    setting = SETTINGS["plain"]
    inputs = convolution_inputs(setting, True, extra)
    expected = output_and_gradients(plain_deform_conv, inputs, setting)
    ours = output_and_gradients(mmcv_deform_conv, inputs, setting)
    assert ours[2].shape == inputs[1].shape and (ours[2] == 0).any()
    for a, b in zip(ours, expected, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_offsets_that_are_too_few_raise():
    x, offset, mask, weight, bias = convolution_inputs(SETTINGS["plain"], True)
    with pytest.raises(RuntimeError, match=r"offset.* 162 .*\(3, 4\).* 216"):
        mmcv.ops.modulated_deform_conv2d(x, offset[..., 1:], mask, weight, bias, 1, 1)
    with pytest.raises(RuntimeError, match="mask.* 72 "):
        mmcv.ops.modulated_deform_conv2d(x, offset, mask[:, :, 1:], weight, bias, 1, 1)
    with pytest.raises(RuntimeError, match=r"deform_conv_forward: offset.*\(3, 3\).*\(3, 4\)"):
        mmcv.ops.deform_conv2d(x, offset[..., 1:], weight, 1, 1)


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_of_zero_are_a_convolution_without_a_gradient_outside(modulated):
    x, offset, mask, weight, bias = convolution_inputs(SETTINGS["plain"], modulated)
    offset = torch.zeros_like(offset)
    mask = torch.ones_like(mask) if modulated else None
    inputs = (x, offset, mask, weight, bias)
    output, _, of_offset, *_ = output_and_gradients(mmcv_deform_conv, inputs, SETTINGS["plain"])
    torch.testing.assert_close(output, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-13)
    # The taps of the upper row one pixel outside: mmcv's kernels give 0, torchvision's do not.
    of_offset = of_offset.view(2, 3, 3, 2, 3, 4)
    assert not of_offset[:, 0, :, :, 0].any() and not of_offset[:, :, 0, :, :, 0].any()
    assert of_offset[:, 1:, 1:].flatten(4).any(dim=4).all()
    leaf = offset.clone().requires_grad_()
    torchvision.ops.deform_conv2d(x, leaf, weight, padding=1).sum().backward()
    assert leaf.grad.view(2, 3, 3, 2, 3, 4)[:, 0, :, 0, 0].any()


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_deform_conv_of_halves_is_rounded_once(dtype, modulated):
    setting = SETTINGS["groups"]
    inputs = [t for t in convolution_inputs(setting, modulated) if t is not None]

    def convolve(x, offset, *rest):
        mask, weight, bias = rest if modulated else (None, *rest, None)
        return mmcv_deform_conv(x, offset, mask, weight, bias, **setting)

    assert_rounded_once(convolve, inputs, dtype)


def test_deform_conv_in_other_layouts_and_of_small_inputs():
    setting = SETTINGS["plain"]
    inputs = convolution_inputs(setting, True)
    expected = output_and_gradients(mmcv_deform_conv, inputs, setting)
    strided = [
        t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs
    ]
    for a, b in zip(
        output_and_gradients(mmcv_deform_conv, strided, setting), expected, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    # A layer pads what is smaller than its kernel.
    layer = mmcv.ops.DeformConv2d(2, 3, 3, padding=1)
    output = layer(torch.randn(2, 2, 2, 1), torch.zeros(2, 18, 2, 1))
    assert output.shape == (2, 3, 2, 1) and output.any()


def test_deform_conv_of_no_images():
    x, offset, mask, weight, bias = convolution_inputs(SETTINGS["plain"], True)
    x, offset, mask, unused = x[:0], offset[:0], mask[:0], x.new_zeros(0)
    output = x.new_zeros(0, 4, 3, 4)
    setting = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, True)
    forward, backward = (
        mmcv_ops.OPERATORS[f"modulated_deform_conv_{way}"] for way in ("forward", "backward")
    )
    forward(x, weight, bias, unused, offset, mask, output, unused, *setting)
    buffers = [torch.full_like(t, torch.nan) for t in (x, weight, bias, offset, mask)]
    backward(x, weight, bias, unused, offset, mask, unused, *buffers, output, *setting)
    assert not buffers[1].any() and not buffers[2].any()
    # mmcv's own layers refuse a batch of none.
    with pytest.raises(ValueError, match="too small"):
        mmcv.ops.deform_conv2d(x, offset, weight, 1, 1)


def test_layers_with_their_own_offsets_start_as_convolutions():
    x = torch.randn(2, 4, 6, 7)
    for layer in (mmcv.ops.DeformConv2dPack, mmcv.ops.ModulatedDeformConv2dPack):
        layer = layer(4, 6, 3, padding=1, deform_groups=2)
        output = layer(x)
        plain = F.conv2d(x, layer.weight, padding=1)
        if layer.__class__ is mmcv.ops.ModulatedDeformConv2dPack:
            plain = plain / 2  # the mask is sigmoid(0)
        torch.testing.assert_close(output, plain)
        output.square().sum().backward()
        assert layer.conv_offset.weight.grad.any()


# Attention


def plain_attention(value, shapes, locations, weights):
    """Deformable attention point by point."""
    n, _, heads, _ = value.shape
    maps = value.split([h * w for h, w in shapes], dim=1)
    images = []
    for image in range(n):
        for query in range(locations.shape[1]):
            for head in range(heads):
                total = 0
                for level, (h, w) in enumerate(shapes):
                    planes = maps[level][image, :, head].T.view(-1, h, w)
                    for point in range(locations.shape[4]):
                        x, y = locations[image, query, head, level, point]
                        values = [bilinear(plane, y * h - 0.5, x * w - 0.5) for plane in planes]
                        weight = weights[image, query, head, level, point]
                        total = total + weight * torch.stack(values)
                images.append(total)
    return torch.stack(images).view(n, locations.shape[1], -1)


def attention_inputs(queries=3):
    shapes = [(3, 4), (2, 1)]
    value = torch.randn(2, 14, 2, 3, **double)
    locations = torch.rand(2, queries, 2, 2, 3, 2, **double) * 1.6 - 0.3  # some outside
    weights = torch.rand(2, queries, 2, 2, 3, **double)
    return value, shapes, locations, weights


def mmcv_attention(value, shapes, locations, weights):
    spatial = torch.tensor(shapes, device=value.device)
    starts = torch.tensor([0, *(h * w for h, w in shapes[:-1])], device=value.device)
    function = mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, spatial, starts.cumsum(0), locations, weights, 64)


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_attention_equals_the_definition(device):
    value, shapes, locations, weights = attention_inputs()
    results = []
    for operator, place in ((mmcv_attention, device), (plain_attention, "cpu")):
        leaves = [t.to(place).clone().requires_grad_() for t in (value, locations, weights)]
        output = operator(leaves[0], shapes, *leaves[1:])
        output.backward((torch.arange(output.numel()).view_as(output) % 7 - 3).to(output))
        results.append([output.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for ours, expected in zip(*results, strict=True):
        assert expected.any()
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_gradcheck_of_attention():
    value, shapes, locations, weights = attention_inputs()
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda value, *rest: mmcv_attention(value, shapes, *rest), leaves, fast_mode=True
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_of_halves_is_rounded_once(dtype):
    value, shapes, *rest = attention_inputs()
    assert_rounded_once(
        lambda value, *rest: mmcv_attention(value, shapes, *rest), [value, *rest], dtype
    )


def test_attention_without_queries_or_images():
    value, shapes, locations, weights = attention_inputs(queries=0)
    assert mmcv_attention(value, shapes, locations, weights).shape == (2, 0, 6)
    value, shapes, locations, weights = (
        t[:0] if torch.is_tensor(t) else t for t in attention_inputs()
    )
    leaf = value.requires_grad_()
    output = mmcv_attention(leaf, shapes, locations, weights)
    assert output.shape == (0, 3, 6)
    output.sum().backward()
    assert leaf.grad.shape == value.shape


@pytest.mark.parametrize("coordinates", [2, 4])
def test_mmcvs_attention_on_its_gpu_branch(coordinates):
    attention = mmcv.ops.MultiScaleDeformableAttention(8, 2, 2, 3, batch_first=True, dropout=0.0)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.5)
    torch.nn.init.normal_(attention.attention_weights.weight)
    shapes = torch.tensor([[3, 4], [2, 1]])
    query, value = torch.randn(2, 5, 8), torch.randn(2, 14, 8)
    call = dict(
        value=value,
        reference_points=torch.rand(2, 5, 2, coordinates),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 12]),
        key_padding_mask=torch.arange(14).repeat(2, 1) % 5 == 0,
    )
    results = []
    for branch in (nullcontext, gpu_branches):
        attention.zero_grad()
        with branch() as calls:
            output = attention(query, **call)
            output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in attention.parameters())])
    assert calls == {"ms_deform_attn_forward": 1, "ms_deform_attn_backward": 1}
    for ours, expected in zip(*results, strict=True):
        assert expected.any()
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


# RoI pooling


def plain_deform_roi_pool(features, rois, offset, size, scale, sampling_ratio, gamma):
    """Pooled map and the gradients of features and offset for a gradient of output's values.

    Sample by sample, with the derivative in x and y of mmcv's kernel.
    """
    _, channels, height, width = features.shape
    pooled = features.new_zeros(len(rois), channels, *size)
    to_pixels, to_offsets = [], []
    for k, roi in enumerate(rois.tolist()):
        image = int(roi[0])
        x1, y1, x2, y2 = (v * scale - 0.5 for v in roi[1:])
        roi_w, roi_h = x2 - x1, y2 - y1
        counts = [
            sampling_ratio if sampling_ratio > 0 else math.ceil(length / bins)
            for length, bins in ((roi_h, size[0]), (roi_w, size[1]))
        ]
        total = counts[0] * counts[1]
        for ph in range(size[0]):
            for pw in range(size[1]):
                dx = dy = 0.0
                if offset is not None:
                    dx = gamma * roi_w * float(offset[k, 0, ph, pw])
                    dy = gamma * roi_h * float(offset[k, 1, ph, pw])
                for iy in range(counts[0]):
                    for ix in range(counts[1]):
                        y = y1 + dy + (ph + (iy + 0.5) / counts[0]) * roi_h / size[0]
                        x = x1 + dx + (pw + (ix + 0.5) / counts[1]) * roi_w / size[1]
                        if not (-1 <= y <= height and -1 <= x <= width):
                            continue
                        top = min(int(max(y, 0)), height - 1)
                        left = min(int(max(x, 0)), width - 1)
                        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                        ly = min(max(y, 0), height - 1) - top
                        lx = min(max(x, 0), width - 1) - left
                        shares = [
                            (top, left, (1 - ly) * (1 - lx)),
                            (top, right, (1 - ly) * lx),
                            (bottom, left, ly * (1 - lx)),
                            (bottom, right, ly * lx),
                        ]
                        for row, column, share in shares:
                            pooled[k, :, ph, pw] += features[image, :, row, column] * share / total
                            to_pixels.append((k, ph, pw, image, row, column, share / total))
                        i00, i10, i01, i11 = (features[image, :, r, c] for r, c, _ in shares)
                        by_x = (
                            i11 * (y - top)
                            + i10 * (bottom - y)
                            + i01 * (top - y)
                            + i00 * (y - bottom)
                        )
                        by_y = (
                            i11 * (x - left)
                            + i01 * (right - x)
                            + i10 * (left - x)
                            + i00 * (x - right)
                        )
                        to_offsets.append((k, ph, pw, by_x * gamma * roi_w / total,
                                           by_y * gamma * roi_h / total))  # fmt: skip

    def backward(gradient):
        of_features = torch.zeros_like(features)
        of_offset = features.new_zeros(len(rois), 2, *size)
        for k, ph, pw, image, row, column, share in to_pixels:
            of_features[image, :, row, column] += gradient[k, :, ph, pw] * share
        for k, ph, pw, by_x, by_y in to_offsets:
            of_offset[k, 0, ph, pw] += (by_x * gradient[k, :, ph, pw]).sum()
            of_offset[k, 1, ph, pw] += (by_y * gradient[k, :, ph, pw]).sum()
        return of_features, of_offset

    return pooled, backward


def pooling_inputs():
    features = torch.randn(2, 3, 6, 7, **double)
    rois = torch.tensor(
        [[0, 3.1, 5.2, 20.7, 21.9], [1, -9, -6, 9, 7], [1, 12, 10, 30, 28], [0, 8, 8, 8, 8]],
        **double,
    )
    return features, rois, torch.randn(4, 2, 2, 3, **double)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_deform_roi_pool_equals_the_definition(device, sampling_ratio, shifted):
    features, rois, offset = pooling_inputs()
    args = (2, 3), 0.25, sampling_ratio, 0.3
    expected, backward = plain_deform_roi_pool(features, rois, offset if shifted else None, *args)
    leaves = [t.to(device).requires_grad_() for t in (features, offset)]
    pooled = mmcv.ops.deform_roi_pool(
        leaves[0], rois.to(device), leaves[1] if shifted else None, *args
    )
    gradient = (torch.arange(pooled.numel()) % 17 - 7.0).view(pooled.shape).to(pooled.dtype) / 8
    pooled.backward(gradient.to(device))
    of_features, of_offset = backward(gradient)
    assert expected[:3].flatten(1).any(dim=1).all()
    assert expected[3].any() == (sampling_ratio > 0)  # a point has an area of none
    torch.testing.assert_close(pooled.detach().cpu(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(leaves[0].grad.cpu(), of_features, rtol=0, atol=1e-12)
    if shifted:
        assert of_offset.any()
        torch.testing.assert_close(leaves[1].grad.cpu(), of_offset, rtol=0, atol=1e-12)


def test_gradcheck_of_deform_roi_pool_inside_the_map():
    features = torch.randn(1, 2, 9, 9, **double, requires_grad=True)
    rois = torch.tensor([[0, 9.3, 9.1, 24.9, 23.3]], **double)
    offset = (torch.randn(1, 2, 2, 2, **double) * 0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, o: mmcv.ops.deform_roi_pool(f, rois, o, (2, 2), 0.25, 2, 0.1), (features, offset)
    )


def test_without_offsets_it_is_roi_align():
    features, rois, _ = pooling_inputs()
    pooled = mmcv.ops.deform_roi_pool(features, rois, None, (2, 3), 0.25, 2)
    expected = torchvision.ops.roi_align(features, rois, (2, 3), 0.25, 2, aligned=True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", HALVES)
def test_deform_roi_pool_of_halves_and_of_nothing(dtype):
    features, rois, offset = pooling_inputs()
    rois = rois[:3].to(dtype)
    assert_rounded_once(
        lambda f, o: mmcv.ops.deform_roi_pool(f, rois.to(f.dtype), o, (2, 3), 0.25, 2, 0.3),
        [features, offset[:3]],
        dtype,
    )
    features = features.to(dtype).requires_grad_()
    pooled = mmcv.ops.deform_roi_pool(features, rois[:0], offset[:0].to(dtype), (2, 3), 0.25)
    assert pooled.shape == (0, 3, 2, 3) and pooled.dtype == dtype
    pooled.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("layer", ["DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"])
def test_layers_that_predict_their_offsets(layer):
    features, rois, _ = pooling_inputs()
    layer = getattr(mmcv.ops, layer)((2, 3), 3, 16, spatial_scale=0.25, sampling_ratio=2)
    pooled = layer(features.float(), rois.float())
    assert pooled.shape == (4, 3, 2, 3)
    pooled.sum().backward()
    assert layer.offset_fc[-1].bias.grad.any()
