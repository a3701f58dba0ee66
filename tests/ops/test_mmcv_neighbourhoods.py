"""CARAFE, PSANet's masks and masked convolution against their definitions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.mmcv_ops import HALVES, assert_rounded_once, gpu

from backbones.openmmlab import mmcv_ops
from benchmarks.gpu_branches import gpu_branches

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops

double = dict(dtype=torch.float64)


# CARAFE


def plain_carafe(features, masks, kernel, group, scale):
    n, channels, height, width = features.shape
    output = []
    for image, c, y, x in itertools.product(
        range(n), range(channels), range(height * scale), range(width * scale)
    ):
        total = features.new_zeros(())
        for i, j in itertools.product(range(kernel), repeat=2):
            row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                tap = (c // (channels // group) * kernel + i) * kernel + j
                total = total + features[image, c, row, column] * masks[image, tap, y, x]
        output.append(total)
    return torch.stack(output).view(n, channels, height * scale, width * scale)


def carafe_inputs(kernel=3, group=2, scale=2):
    features = torch.randn(2, 4, 3, 4, **double)
    masks = torch.randn(2, kernel * kernel * group, 3 * scale, 4 * scale, **double)
    return features, masks


def with_gradients(operator, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output = operator(*leaves)
    weights = (torch.arange(output.numel()) % 17 - 7).reshape(output.shape) / 8
    output.backward(weights.to(output))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(("kernel", "group", "scale"), [(3, 2, 2), (5, 1, 2), (1, 4, 3), (3, 1, 1)])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_carafe_equals_the_definition(device, kernel, group, scale):
    inputs = carafe_inputs(kernel, group, scale)
    expected = with_gradients(lambda f, m: plain_carafe(f, m, kernel, group, scale), *inputs)
    inputs = [t.to(device) for t in inputs]
    ours = with_gradients(mmcv.ops.CARAFE(kernel, group, scale), *inputs)
    with gpu_branches():  # its backward pass asserts a GPU
        naive = with_gradients(mmcv.ops.CARAFENaive(kernel, group, scale), *inputs)
    for a, b, c in zip(ours, naive, expected, strict=True):
        assert c.any() and torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), c, rtol=0, atol=1e-13)


def test_gradcheck_of_carafe():
    inputs = [t[:1].requires_grad_() for t in carafe_inputs()]
    assert torch.autograd.gradcheck(mmcv.ops.CARAFE(3, 2, 2), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", HALVES)
def test_carafe_of_halves_is_rounded_once(dtype):
    assert_rounded_once(mmcv.ops.CARAFE(3, 2, 2), list(carafe_inputs()), dtype)


def test_carafe_of_nothing_and_of_strided_features():
    features, masks = carafe_inputs()
    carafe = mmcv.ops.CARAFE(3, 2, 2)
    empty = features[:0].requires_grad_()
    output = carafe(empty, masks[:0])
    assert output.shape == (0, 4, 6, 8)
    output.sum().backward()
    assert empty.grad.shape == empty.shape
    channels_last = (t.contiguous(memory_format=torch.channels_last) for t in (features, masks))
    expected = with_gradients(carafe, features, masks)
    for a, b in zip(with_gradients(carafe, *channels_last), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_carafes_upsampler_trains():
    upsample = mmcv.ops.CARAFEPack(8, 2, up_kernel=5, compressed_channels=4)
    x = torch.randn(2, 8, 5, 6)
    output = upsample(x)
    output.square().sum().backward()
    # Kernels that sum to 1 keep a constant map, away from the border.
    assert upsample.content_encoder.weight.grad.any() and output.shape == (2, 8, 10, 12)
    constant = upsample(torch.full((1, 8, 9, 9), 3.0))[:, :, 4:-4, 4:-4]
    torch.testing.assert_close(constant, torch.full_like(constant, 3.0))


# PSANet


def plain_psamask(x, psa_type, mask_size):
    n, _, height, width = x.shape
    mask_h, mask_w = mask_size
    output = x.new_zeros(n, height * width, height, width).clone()
    for i, j, h, w in itertools.product(*map(range, (mask_h, mask_w, height, width))):
        row, column = i + h - (mask_h - 1) // 2, j + w - (mask_w - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            value = x[:, i * mask_w + j, h, w]
            if psa_type == "collect":
                output[:, row * width + column, h, w] = value
            else:
                output[:, h * width + w, row, column] = value
    return output


@pytest.mark.parametrize("mask_size", [(5, 7), (3, 3), (4, 2), (13, 1), (1, 15)])
@pytest.mark.parametrize("psa_type", ["collect", "distribute"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_psamask_equals_the_definition(device, dtype, psa_type, mask_size):
    x = torch.randn(2, mask_size[0] * mask_size[1], 4, 5).to(dtype)
    expected = with_gradients(lambda t: plain_psamask(t, psa_type, mask_size), x)
    ours = with_gradients(mmcv.ops.PSAMask(psa_type, mask_size), x.to(device))
    for a, b in zip(ours, expected, strict=True):
        assert b.any() and a.dtype == dtype and torch.equal(a.cpu(), b)


@pytest.mark.parametrize("psa_type", ["collect", "distribute"])
def test_gradcheck_of_psamask_and_its_map_of_nothing(psa_type):
    mask = mmcv.ops.PSAMask(psa_type, (3, 5))
    x = torch.randn(1, 15, 3, 2, **double, requires_grad=True)
    assert torch.autograd.gradcheck(mask, x)
    empty = x.detach()[:0].requires_grad_()
    output = mask(empty)
    output.sum().backward()
    assert output.shape == (0, 6, 3, 2) and empty.grad.shape == empty.shape


# Masked convolution


@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((3, 5), (1, 2)), ((3, 3), (2, 2))]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_masked_conv_is_the_convolution_at_the_masks_pixels(device, dtype, kernel, padding):
    layer = mmcv.ops.MaskedConv2d(3, 4, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 3, 6, 7, dtype=dtype, device=device)
    mask = torch.rand(1, 6, 7, device=device) > 0.6
    with torch.no_grad():
        output = layer(x, mask)
        expected = F.conv2d(x, layer.weight, layer.bias, padding=padding)
    chosen = F.pad(mask, (0, expected.shape[3] - 7, 0, expected.shape[2] - 6))
    expected = expected * chosen[:, None]
    assert expected.any() and mask.any() and not mask.all()
    atol = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(output, expected, rtol=0, atol=atol)
    assert not layer(x, torch.zeros_like(mask)).any()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=padding))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_columns_of_halves_are_copied(dtype):
    x = torch.randn(1, 2, 5, 6).to(dtype)
    h, w = torch.tensor([0, 2, 4]), torch.tensor([5, 3, 0])
    columns = torch.full((2 * 3 * 3, 3), torch.nan, dtype=dtype)
    operators = mmcv_ops.OPERATORS
    operators["masked_im2col_forward"](x, h, w, columns, 3, 3, 1, 1)
    expected = F.unfold(x.float(), 3, padding=1)[0, :, h * 6 + w].to(dtype)
    assert torch.equal(columns, expected)
    image = torch.full((1, 2, 5, 6), 7.0, dtype=dtype)
    operators["masked_col2im_forward"](columns[:2], h, w, image, 5, 6, 2)
    assert torch.equal(image[0][:, h, w], columns[:2])
    assert int((image == 7).sum()) == 2 * (30 - 3)
