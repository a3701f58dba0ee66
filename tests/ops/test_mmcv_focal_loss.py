"""Focal loss of sigmoids against its definition, torchvision's, mmdet's and mmseg's."""

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

CLASSES = 5


def logits_and_labels(dtype=torch.float64):
    logits = torch.randn(12, CLASSES, dtype=torch.float64) * 4
    labels = torch.tensor([0, 4, 5, 5, 2, 1, 3, 5, -1, 4, 0, 5])  # 5 and -1: background
    return logits.to(dtype), labels


def plain_focal_loss(logits, labels, gamma, alpha, weight=None):
    """-factor (1 - p)^gamma log p, p the sigmoid of the logit, negated for other classes."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for column, x in enumerate(row):
            factor = alpha if column == label else 1 - alpha
            x = x if column == label else -x
            miss, surprise = 1 / (1 + math.exp(x)), math.log1p(math.exp(-x))
            known = weight is not None and 0 <= label < CLASSES
            losses.append(factor * miss**gamma * surprise * (float(weight[label]) if known else 1))
    return torch.tensor(losses, dtype=torch.float64).view(logits.shape)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (0.5, 0.9), (1.5, 1.0)])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_focal_loss_equals_the_definition(device, gamma, alpha, weighted):
    logits, labels = logits_and_labels()
    weight = torch.rand(CLASSES, dtype=torch.float64) + 0.5 if weighted else None
    expected = plain_focal_loss(logits, labels, gamma, alpha, weight)
    arguments = (t if t is None else t.to(device) for t in (logits, labels))
    weight = None if weight is None else weight.to(device)
    loss = mmcv.ops.sigmoid_focal_loss(*arguments, gamma, alpha, weight, "none")
    assert expected.any()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-13, atol=0)


def test_focal_loss_is_reduced():
    logits, labels = logits_and_labels()
    expected = plain_focal_loss(logits, labels, 2.0, 0.25)
    for reduction, value in (("sum", expected.sum()), ("mean", expected.sum() / len(logits))):
        loss = mmcv.ops.SigmoidFocalLoss(2.0, 0.25, reduction=reduction)(logits, labels)
        torch.testing.assert_close(loss, value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("gamma", [2.0, 0.0, 0.5])
def test_gradcheck_of_focal_loss(gamma):
    logits, labels = logits_and_labels()
    weight = torch.rand(CLASSES, dtype=torch.float64)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda x, how=reduction: mmcv.ops.sigmoid_focal_loss(
                x, labels, gamma, 0.25, weight, how
            ),
            logits.requires_grad_(),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])
def test_focal_loss_equals_torchvisions(scale, dtype):
    logits, labels = logits_and_labels(dtype)
    logits = (logits * scale).requires_grad_()
    labels[labels < 0] = CLASSES
    targets = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].to(dtype)
    results = []
    for loss in (
        mmcv.ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, "none"),
        torchvision.ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        results.append((loss.detach(), gradient))
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all() and theirs.any()
        # torchvision subtracts p from 1.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=32 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", HALVES)
def test_focal_loss_of_halves_is_rounded_once(dtype):
    logits, labels = logits_and_labels()
    assert_rounded_once(
        lambda x: mmcv.ops.sigmoid_focal_loss(x, labels, 2.0, 0.25, None, "none"),
        [logits],
        dtype,
        weighted=False,  # mmcv multiplies by the weights in the half
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_focal_loss_of_nothing(dtype):
    logits = torch.zeros(0, CLASSES, dtype=dtype, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.long)
    loss = mmcv.ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, "none")
    assert loss.shape == logits.shape and loss.dtype == dtype
    loss.sum().backward()
    assert logits.grad.shape == logits.shape


def test_a_label_above_background_raises():
    logits, labels = logits_and_labels()
    labels[3] = CLASSES + 1
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss_forward: target.* 6"):
        mmcv.ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, "none")


@pytest.mark.parametrize("weight", [None, "samples", "elements"])
def test_mmdets_focal_loss_on_its_gpu_branch(weight):
    from mmdet.models.losses import FocalLoss

    logits, labels = logits_and_labels()
    labels[labels < 0] = CLASSES
    logits.requires_grad_()
    shape = dict(samples=(12,), elements=(12, CLASSES)).get(weight)
    weight = weight and torch.rand(shape, dtype=torch.float64)
    loss = FocalLoss(gamma=1.5, alpha=0.3, loss_weight=2.0)
    expected = loss(logits, labels, weight, avg_factor=7.0)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    with gpu_branches() as calls:
        value = loss(logits, labels, weight, avg_factor=7.0)
        (gradient,) = torch.autograd.grad(value, logits)
    assert calls == {"sigmoid_focal_loss_forward": 1, "sigmoid_focal_loss_backward": 1}
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("alpha", [0.3, [0.3, 0.9, 0.5, 0.1, 0.7]])
def test_mmsegs_focal_loss_on_its_gpu_branch(alpha):
    from mmseg.models.losses import FocalLoss

    logits = torch.randn(2, CLASSES, 3, 4, dtype=torch.float64, requires_grad=True)
    # One-hot: its CPU branch fails on label maps.
    target = F.one_hot(torch.randint(0, CLASSES, (2, 3, 4)), CLASSES).permute(0, 3, 1, 2)
    loss = FocalLoss(gamma=1.5, alpha=alpha)
    results = []
    for branch in (nullcontext, gpu_branches):
        with branch() as calls:
            value = loss(logits, target)
            results.append((value.detach(), *torch.autograd.grad(value, logits)))
    assert calls == {"sigmoid_focal_loss_forward": 1, "sigmoid_focal_loss_backward": 1}
    for ours, expected in zip(*results, strict=True):
        assert expected.any()
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-16)
