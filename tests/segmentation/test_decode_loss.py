"""Losses of enlarged logits, by blocks, against the plain definition and mmseg's segmentor."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import backbones.openmmlab.segmentation  # noqa: F401
from backbones import InputError
from backbones.openmmlab.doctor.memory import LiveBytes
from backbones.openmmlab.segmentation.decode_loss import enlarges_by_blocks
from backbones.openmmlab.segmentation.label_range import CheckedLabels, LabelRangeHook
from backbones.ops import upsampled_cross_entropy as module
from backbones.ops.upsampled_cross_entropy import (
    upsampled_cross_entropy,
    upsampled_cross_entropy_reference,
)

# (classes, low size, size of the labels): by whole and broken ratios, from and to one pixel, the
# same size, and labels smaller than the logits.
SIZES = [
    (150, (8, 8), (64, 64)),
    (5, (4, 6), (13, 9)),
    (2, (1, 1), (7, 5)),
    (3, (5, 5), (5, 5)),
    (4, (1, 9), (1, 31)),
    (7, (16, 12), (5, 9)),
    (1, (3, 3), (6, 6)),
    (6, (9, 2), (1, 1)),
]


def problem(classes: int, low: tuple[int, int], size: tuple[int, int], images: int = 2):
    """Logits whose best class is often the label's, and labels of which a fifth are ignored."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(images, classes, *low, dtype=torch.float64)
    enlarged = nn.functional.interpolate(logits, size, mode="bilinear")
    labels = enlarged.argmax(1)
    other = torch.randint(0, classes, labels.shape)
    labels = torch.where(torch.rand(labels.shape) < 0.5, other, labels)
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits, labels


def loss_and_gradient(function, logits: Tensor, labels: Tensor, *args, **kwargs):
    logits = logits.clone().requires_grad_()
    loss, right = function(logits, labels, *args, **kwargs)
    (1.7 * loss).backward()
    return loss.detach(), right, logits.grad


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_operator_is_its_definition(sizes, align_corners, weighted):
    logits, labels = problem(*sizes)
    weight = torch.rand(sizes[0], dtype=torch.float64) if weighted else None
    for layout in (torch.contiguous_format, torch.channels_last):
        ours, plain = (
            loss_and_gradient(f, logits.to(memory_format=layout), labels, weight,
                              align_corners=align_corners)
            for f in (upsampled_cross_entropy, upsampled_cross_entropy_reference)
        )  # fmt: skip
        torch.testing.assert_close(ours[0], plain[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours[2], plain[2], rtol=1e-12, atol=1e-12)
        assert ours[1] == plain[1]
    assert plain[0] > 0 or sizes[0] == 1


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_ratio_of_heights(align_corners):
    """That no block misses a line, wherever rounding puts it."""
    for low in range(1, 9):
        for high in range(1, 40, 3):
            logits, labels = problem(2, (low, 2), (high, 3), images=1)
            plain = loss_and_gradient(
                upsampled_cross_entropy_reference, logits, labels, align_corners=align_corners
            )
            ours = loss_and_gradient(
                upsampled_cross_entropy, logits, labels, align_corners=align_corners
            )
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 700, 10**9])
def test_blocks_do_not_show(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    logits, labels = problem(5, (7, 6), (29, 23))
    ours = loss_and_gradient(upsampled_cross_entropy, logits, labels)
    plain = loss_and_gradient(upsampled_cross_entropy_reference, logits, labels)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_the_plain_one(dtype):
    logits, labels = problem(19, (24, 24), (96, 96))
    logits = logits.to(dtype)
    exact = loss_and_gradient(upsampled_cross_entropy_reference, logits.double(), labels)
    errors = []
    for function in (upsampled_cross_entropy_reference, upsampled_cross_entropy):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            loss, _, gradient = loss_and_gradient(function, logits, labels)
        assert gradient.dtype == dtype
        errors.append((abs(loss.double() - exact[0]).item(), (gradient - exact[2]).norm().item()))
    for plain, ours in zip(*errors, strict=True):
        assert ours <= 2 * plain + 1e-9


def test_pixels_that_are_ignored_take_no_part():
    logits, labels = problem(4, (6, 6), (24, 24))
    logits[:, 0] = -1e9  # ignored pixels are looked up under class 0
    labels[:, 10:] = 255
    labels[labels == 0] = 1
    loss, _, gradient = loss_and_gradient(upsampled_cross_entropy, logits, labels)
    assert 0 < loss < 1e6 and gradient.any() and not gradient[:, :, 4:].any()
    labels[:] = 255
    loss, right, gradient = loss_and_gradient(upsampled_cross_entropy, logits * 0 + 1, labels)
    assert loss == 0 and right == 0 and not gradient.any()


def test_what_is_no_number_shows():
    logits, labels = problem(4, (6, 6), (24, 24))
    logits[0, 1, 2, 2] = torch.nan
    loss, _, gradient = loss_and_gradient(upsampled_cross_entropy, logits, labels)
    assert loss.isnan() and gradient.isnan().any()


def test_labels_of_no_class_are_refused():
    logits, labels = problem(4, (6, 6), (24, 24))
    labels[0, 3, 3] = 4
    with pytest.raises(RuntimeError, match="index 4 is out of bounds"):
        upsampled_cross_entropy(logits, labels)


def test_enlarged_logits_never_exist():
    logits, labels = problem(50, (16, 16), (256, 256), images=4)
    peaks = []
    for function in (upsampled_cross_entropy_reference, upsampled_cross_entropy):
        with LiveBytes() as live:
            loss_and_gradient(function, logits, labels)
        peaks.append(live.peak)
    plain, ours = peaks
    assert plain > 2 * 4 * 50 * 256**2 * 8  # logits and log-probabilities, in float64
    assert ours < plain / 8


def segmentor(kind: str, loss: dict | list, *, align_corners: bool, sampler: dict | None = None):
    common = dict(
        num_classes=6,
        norm_cfg=dict(type="BN"),
        dropout_ratio=0.0,
        align_corners=align_corners,
        loss_decode=loss,
        sampler=sampler,
    )
    fcn = dict(type="FCNHead", in_channels=12, in_index=1, channels=8, num_convs=1, **common)
    model = dict(
        type=kind,
        backbone=dict(type="ConvNeXt", arch=dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))),
        decode_head=dict(
            type="FactorizedUPerHead" if kind != "EncoderDecoder" else "UPerHead",
            in_channels=[8, 12, 16, 20],
            in_index=[0, 1, 2, 3],
            channels=8,
            **common,
        ),
        auxiliary_head=[fcn, dict(fcn, in_index=2, in_channels=16)],
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(ConfigDict(model)).double().train()


CROSS_ENTROPY = dict(type="CrossEntropyLoss", use_sigmoid=False)
WEIGHTS = [0.5, 1.0, 2.0, 0.1, 1.5, 3.0]
LOSSES = {
    "plain": (dict(CROSS_ENTROPY, loss_weight=0.4), True),
    "mean of those not ignored": (dict(CROSS_ENTROPY, avg_non_ignore=True), True),
    "classes weighted": (dict(CROSS_ENTROPY, class_weight=WEIGHTS), True),
    "two of one name": ([CROSS_ENTROPY, dict(CROSS_ENTROPY, loss_weight=0.3)], True),
    "two names": ([CROSS_ENTROPY, dict(CROSS_ENTROPY, loss_name="loss_b")], True),
    "sigmoid": (dict(CROSS_ENTROPY, use_sigmoid=True), False),
    "with dice": ([CROSS_ENTROPY, dict(type="DiceLoss", loss_name="loss_dice")], False),
    "hard examples": (CROSS_ENTROPY, False),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_segmentor_loses_as_mmsegs(name, align_corners):
    loss, by_blocks = LOSSES[name]
    sampler = dict(type="OHEMPixelSampler", thresh=0.7, min_kept=50)
    sampler = sampler if name == "hard examples" else None
    kinds = ("EncoderDecoder", "SlidingWindowSegmentor")
    torch.manual_seed(0)
    theirs, ours = (
        segmentor(kind, loss, align_corners=align_corners, sampler=sampler) for kind in kinds
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    heads = [ours.decode_head, *ours.auxiliary_head]
    assert [enlarges_by_blocks(head) for head in heads] == [by_blocks] * 3
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    samples = []
    for _ in images:
        labels = torch.randint(0, 6, (1, 64, 96))
        labels[:, :20] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels)))
    for _ in range(2):  # the second time nothing is left to train on, as in an empty image
        results = [model.loss(images, samples) for model in (theirs, ours)]
        assert list(results[0]) == list(results[1])
        for key, expected in results[0].items():
            if not by_blocks and (samples[0].gt_sem_seg.data == 255).all():
                assert results[1][key] == (100 if "acc" in key else 0)
                continue
            # mmseg adds the machine epsilon of float32 in float32
            torch.testing.assert_close(results[1][key], expected, rtol=2e-7, atol=1e-9)
        for sample in samples:
            sample.gt_sem_seg.data[:] = 255
    for model in (theirs, ours):
        losses, _ = model.parse_losses(model.loss(images, _labelled(samples)))
        losses.backward()
    for (key, one), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(
            other.grad, one.grad, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}"
        )


# In mmseg itself sigmoid cross entropy and Lovasz are not finite where all is ignored.
UNLABELLED = {
    "mmseg's": ("EncoderDecoder", CROSS_ENTROPY),
    "by blocks": ("SlidingWindowSegmentor", CROSS_ENTROPY),
    "by blocks, weighted": (
        "SlidingWindowSegmentor",
        dict(CROSS_ENTROPY, class_weight=WEIGHTS, loss_weight=0.4),
    ),
    "sigmoid": ("SlidingWindowSegmentor", dict(CROSS_ENTROPY, use_sigmoid=True)),
    "lovasz": ("SlidingWindowSegmentor", dict(type="LovaszLoss", reduction="none")),
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_samples_without_a_labelled_pixel_weigh_nothing(name):
    """200 steps on maps of which half are ignored end where the 100 others alone end."""
    kind, loss = UNLABELLED[name]
    head = dict(
        type="LinearHead", in_channels=8, in_index=0, num_classes=6, dropout_ratio=0.0,
        align_corners=False, loss_decode=loss,
    )  # fmt: skip
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model = dict(
        type=kind,
        backbone=dict(type="ConvNeXt", arch=arch, drop_path_rate=0.0, frozen_stages=4),
        decode_head=head,
    )
    ends = []
    for with_ignored in (True, False):
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmseg"):
            segmentor = MODELS.build(ConfigDict(model)).train()
        optimizer = torch.optim.SGD(segmentor.decode_head.parameters(), lr=0.1)
        checked = CheckedLabels(lambda samples: samples, 6, 255)
        for step in range(200):
            torch.manual_seed(step)
            image, labels = torch.randn(1, 3, 32, 32), torch.randint(0, 6, (1, 32, 32))
            ignored = step % 2 == 0
            if ignored:
                labels[:] = 255
                if not with_ignored:
                    continue
            sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
            checked([dict(inputs=image[0], data_samples=sample)])
            losses, logs = segmentor.parse_losses(segmentor.loss(image, [sample]))
            assert all(value.isfinite().all() for value in logs.values())
            assert (float(losses) == 0) == ignored
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
        ends.append(segmentor.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=0, atol=0)
    initial = nn.Conv2d(8, 6, 1).weight.std()
    assert ends[0]["decode_head.conv_seg.weight"].std() > 0.05 * initial


def test_unlabelled_maps_are_evaluated():
    """Pixels of such a map count neither for nor against a class, and the check lets it pass."""
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric()
    metric.dataset_meta = dict(classes=("a", "b"))
    truth = torch.tensor([[[0, 0, 1, 1]]])
    for labels in (truth, torch.full_like(truth, 255)):
        sample = dict(
            pred_sem_seg=dict(data=torch.tensor([[[0, 1, 1, 1]]])), gt_sem_seg=dict(data=labels)
        )
        metric.process({}, [sample])
    figures = metric.evaluate(2)
    assert figures["mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2, abs=0.01)
    assert figures["aAcc"] == pytest.approx(75)


class LabelledData(torch.utils.data.Dataset):
    """Two samples as a pipeline packs them, or as views of one image; the second has label 7."""

    def __init__(self, views: bool):
        self.views = views

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        labels = torch.tensor([[[0, 255, 7 if index else 2]]])
        meta = dict(seg_map_path=f"maps/{index}.png")
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta)
        return dict(inputs=labels, data_samples=[sample] if self.views else sample)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_labels_beyond_the_classes_are_named(stage, workers, views):
    """Check labels where a batch is made: in a worker, if there is one."""
    head = SimpleNamespace(ignore_index=255, num_classes=3)
    loader = torch.utils.data.DataLoader(
        LabelledData(views), num_workers=workers, collate_fn=pseudo_collate
    )
    loop = SimpleNamespace(dataloader=loader)
    runner = SimpleNamespace(model=SimpleNamespace(decode_head=head), **{f"{stage}_loop": loop})
    for _ in range(2):  # as before every validation
        getattr(LabelRangeHook(), f"before_{stage}")(runner)
    assert loader.collate_fn.collate is pseudo_collate
    batches = iter(loader)
    assert next(batches)["inputs"][0][0, 0, 2] == 2
    with pytest.raises(InputError) as caught:
        next(batches)
    last = str(caught.value).strip().splitlines()[-1]
    assert caught.value.code == "bad-labels"
    assert all(name in last for name in ("maps/1.png", "7", "3"))


def _labelled(samples: list[SegDataSample]) -> list[SegDataSample]:
    torch.manual_seed(3)
    for sample in samples:
        labels = torch.randint(0, 6, sample.gt_sem_seg.data.shape)
        labels[:, :, :9] = 255
        sample.gt_sem_seg.data = labels
    return samples
