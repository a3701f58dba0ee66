"""Our RoI heads against mmdet's own on the same weights: detections, losses, gradients, COCO AP."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.detectors import (
    METHODS,
    assert_same_detections,
    batch,
    narrow,
    pair,
    predict,
)
from support.running import REPOSITORY

from backbones import InputError
from backbones.openmmlab.config import inference_dtype, load_config
from backbones.openmmlab.detection.roi_heads import FloatRoIExtractor, paste_masks
from backbones.openmmlab.precision import inference_autocast
from backbones.ops.roi_align import roi_align


@pytest.fixture(autouse=True)
def mmdet_pastes_masks_of_float64_boxes(monkeypatch):
    """It casts masks to float32 and leaves the boxes as they are."""
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste = fcn_mask_head._do_paste_mask
    monkeypatch.setattr(
        fcn_mask_head,
        "_do_paste_mask",
        lambda masks, boxes, *size, **kwargs: paste(masks, boxes.float(), *size, **kwargs),
    )


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_detections_are_those_of_mmdet(method, dtype, rescale):
    ours, theirs = pair(method, dtype)
    mine, expected = (predict(m, *batch(dtype), rescale=rescale) for m in (ours, theirs))
    for instances in expected:
        assert len(instances) > 20 and len(set(instances.labels.tolist())) > 1
        areas = instances.masks.sum((1, 2))
        assert 0.005 < instances.masks.float().mean() < 0.95 and areas.unique().numel() > 5
    exact = dtype == torch.float64
    assert_same_detections(mine, expected, 1e-10 if exact else 1e-4, 1e-5 if exact else 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_class_agnostic_masks(method):
    ours, theirs = pair(method, torch.float64, class_agnostic=True)
    mine, expected = (predict(model, *batch(torch.float64)) for model in (ours, theirs))
    assert len(expected[0]) > 20
    assert_same_detections(mine, expected, 1e-10, 1e-5)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_masks_of_other_upsampling(upsample):
    upsampling = dict(type=upsample, scale_factor=2)
    ours, theirs = pair("cascade", torch.float64, upsample_cfg=upsampling)
    mine, expected = (predict(model, *batch(torch.float64)) for model in (ours, theirs))
    assert_same_detections(mine, expected, 1e-10, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_detections(method):
    ours, theirs = pair(method)
    for model in (ours, theirs):
        model.roi_head.test_cfg.score_thr = 1.0
    mine, expected = (predict(model, *batch()) for model in (ours, theirs))
    assert [i.masks.shape for i in mine] == [(0, 64, 85), (0, 102, 89)]
    assert_same_detections(mine, expected, 0, 0)


def test_masks_are_pasted_in_float32_under_autocast():
    ours, _ = pair("mask_rcnn")
    probabilities = torch.rand(20, 28, 28)
    corner = torch.rand(20, 2) * 60
    boxes = torch.cat([corner, corner + 20 + 60 * torch.rand(20, 2)], 1)
    wanted = paste_masks(probabilities, boxes, (160, 160), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = paste_masks(probabilities, boxes, (160, 160), 0.5)
    assert wanted.any() and torch.equal(found, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_those_of_mmdet(method):
    results = []
    for model in pair(method, torch.float64):
        torch.manual_seed(3)
        model.train()
        losses = model.loss(*batch(torch.float64, truth=True))
        total, logs = model.parse_losses(losses)
        total.backward()
        results.append((logs, {name: p.grad for name, p in model.named_parameters()}))
    (mine, ours), (expected, theirs) = results
    assert mine.keys() == expected.keys() and float(expected["loss"]) > 1
    for name in expected:
        torch.testing.assert_close(mine[name], expected[name], rtol=1e-10, atol=1e-12)
    moved = 0
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        moved += scale > 0
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-9 * max(scale, 1e-3))
    assert moved >= 0.97 * len(theirs)  # no anchor may be drawn on a coarse level of the pyramid


def test_roi_features_stay_channels_last():
    """From the backbone to the fully connected layers no map is laid out anew."""
    ours, _ = pair("cascade")
    seen = []
    for head in [*ours.roi_head.bbox_head, *ours.roi_head.mask_head]:
        convs = getattr(head, "shared_convs", None) or head.convs
        for conv in convs:
            conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(ours, *batch())
    assert len(seen) > 24
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.instruction_set
@pytest.mark.parametrize("method", METHODS)
def test_bf16_inference_is_close_to_float32(method):
    from torchvision.ops import box_iou

    ours, _ = pair(method)
    for stage in [*ours.roi_head.modules()]:
        if hasattr(stage, "fc_cls"):
            stage.fc_cls.weight.data.mul_(0.3)
    exact = predict(ours, *batch())
    with torch.autocast("cpu", torch.bfloat16):
        rough = predict(ours, *batch())
    matched = 0
    for mine, expected in zip(rough, exact, strict=True):
        assert mine.bboxes.dtype == mine.scores.dtype == torch.float32
        assert mine.bboxes.isfinite().all() and len(mine) > 10
        iou = box_iou(mine.bboxes, expected.bboxes)
        iou[mine.labels[:, None] != expected.labels] = 0
        matched += (iou.amax(0) > 0.8).float().mean() / len(exact)
    assert matched > 0.7


def pyramid(dtype=torch.float64, requires_grad=False):
    maps = [torch.randn(2, 5, 48 // 2**i, 64 // 2**i, dtype=dtype) for i in range(3)]
    maps[0] = maps[0].contiguous(memory_format=torch.channels_last)
    corner = torch.rand(40, 2, dtype=dtype) * 260 - 20
    size = (torch.randn(40, 2, dtype=dtype) + 3.5).exp()
    rois = torch.cat([torch.randint(0, 2, (40, 1)).to(dtype), corner, corner + size], 1)
    rois[0, 1:] = torch.tensor([10, 20, 10, 50])  # no width
    rois[1, 1:] = torch.tensor([-500, -500, -400, -400])  # outside
    rois[2, 1:] = torch.tensor([-100, -90, 600, 500])  # larger than the image
    rois[3, 1:] = torch.tensor([0, 0, 255, 3])  # long
    levels = torch.randint(0, 2, (40,))  # none on the last map
    return [x.requires_grad_(requires_grad) for x in maps], rois, levels


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_roi_align_equals_torchvision(sampling_ratio, aligned):
    from torchvision.ops import roi_align as oracle

    maps, rois, levels = pyramid(requires_grad=True)
    scales, size = (1 / 4, 1 / 8, 1 / 16), (7, 5)
    found = roi_align(
        maps, rois, levels, scales, size, sampling_ratio=sampling_ratio, aligned=aligned
    )
    expected = torch.zeros(40, 5, *size, dtype=torch.float64)
    for level in range(3):
        at = (levels == level).nonzero().squeeze(1)
        part = oracle(maps[level], rois[at], size, scales[level], sampling_ratio, aligned)
        expected = expected.index_put((at,), part)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.abs().sum() > 10
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(x, maps, weights) for x in (found, expected))
    for mine, gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, gradient, rtol=0, atol=1e-12)
    assert theirs[0].abs().sum() > 10 and theirs[2].abs().sum() == 0


def test_roi_align_gradient_by_differences():
    maps, rois, levels = pyramid(requires_grad=True)
    maps = [x[:, :1].detach().requires_grad_() for x in maps]
    assert torch.autograd.gradcheck(
        lambda *x: roi_align(x, rois[:8], levels[:8], (1 / 4, 1 / 8, 1 / 16), (2, 2)),
        maps,
        fast_mode=True,
    )


def test_roi_align_of_nothing_and_of_boxes_that_are_not_finite():
    maps, rois, levels = pyramid(requires_grad=True)
    scales = (1 / 4, 1 / 8, 1 / 16)
    assert roi_align(maps, rois[:0], levels[:0], scales, (7, 7)).shape == (0, 5, 7, 7)
    for value in (float("nan"), float("inf")):
        for sampling_ratio in (0, 2):
            rois[:, 1:] = value
            found = roi_align(maps, rois, levels, scales, (7, 7), sampling_ratio=sampling_ratio)
            assert found.abs().max() == 0
            assert all(g.abs().max() == 0 for g in torch.autograd.grad(found.sum(), maps))


@pytest.mark.parametrize("gradients", [True, False])
def test_roi_features_can_be_changed_in_place(gradients):
    """As HTC's heads add semantic features to them; the gradients are those of an addition."""
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    maps = [
        x.requires_grad_(gradients) for x in (torch.rand(1, 5, 16 >> i, 16 >> i) for i in (0, 1))
    ]
    rois = torch.tensor([[0.0, 3, 4, 40, 30], [0, 1, 1, 250, 250]])
    settings = dict(
        roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
        out_channels=5,
        featmap_strides=[4, 8],
    )
    ours, theirs = FloatRoIExtractor(**settings), SingleRoIExtractor(**settings)
    found, expected = ours(maps, rois), theirs(maps, rois) * 2 + 1
    found += found.detach().clone()
    found += 1
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if gradients:
        weights = torch.randn_like(expected)
        mine = torch.autograd.grad(found, maps, weights)
        other = torch.autograd.grad(expected, maps, weights / 2)
        for gradient, reference in zip(mine, other, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("factor", [None, 1.5])
def test_fewer_maps_than_strides(count, factor):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    maps = [torch.rand(2, 5, 64 >> i, 64 >> i) for i in range(count)]
    corners = torch.rand(30, 2) * 200
    sizes = (torch.rand(30, 2) * 5).exp() + 3
    rois = torch.cat([torch.randint(0, 2, (30, 1)).float(), corners, corners + sizes], 1)
    settings = dict(
        roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
        out_channels=5,
        featmap_strides=[4, 8, 16, 32],
    )
    ours, theirs = FloatRoIExtractor(**settings), SingleRoIExtractor(**settings)
    expected = theirs(maps, rois, roi_scale_factor=factor)
    assert expected.std() > 0.1
    torch.testing.assert_close(
        ours(maps, rois, roi_scale_factor=factor), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.instruction_set
def test_roi_align_error_is_at_most_twice_torchvisions():
    from torchvision.ops import roi_align as oracle

    maps, rois, _ = pyramid()
    x, zeros = maps[0], torch.zeros(40, dtype=torch.long)
    exact = oracle(x, rois, 7, 1 / 4, 0, True)
    theirs = oracle(x.float(), rois.float(), 7, 1 / 4, 0, True)
    ours = roi_align([x.float()], rois.float(), zeros, (1 / 4,), (7, 7))
    errors = [(y.double() - exact).pow(2).mean().sqrt() for y in (ours, theirs)]
    assert 0 < errors[0] <= 2 * errors[1]


def coco_results(tmp_path, samples, cls):
    """Results and figures of a COCO metric on predictions for a small annotation file."""
    from mmengine.registry import METRICS

    annotations = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=[2, 3, 20, 30], area=600, iscrowd=0,
             segmentation=[[2, 3, 22, 3, 22, 33, 2, 33]])
        for i in range(len(samples))
    ]  # fmt: skip
    images = [dict(id=i, width=60, height=50, file_name=f"{i}.jpg") for i in range(len(samples))]
    truth = dict(images=images, annotations=annotations, categories=[dict(id=1, name="a")])
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    metric = METRICS.build(dict(type=cls, ann_file=str(path), metric=["bbox", "segm"]))
    metric.dataset_meta = dict(classes=("a",))
    for sample in samples:
        metric.process({}, [sample])
    results = metric.results
    return results, metric.evaluate(len(samples))


def coco_samples(count: int) -> list[dict]:
    samples = []
    for i in range(count):
        masks = torch.rand(5, 50, 60) > 0.7
        masks[0] = False
        masks[0, 3 : 33 - i % 7, 2:22] = True
        boxes = torch.rand(5, 4) * 10 + torch.tensor([0, 0, 20, 20])
        boxes[0] = torch.tensor([2.0, 3, 22, 33 - i % 7])
        found = dict(bboxes=boxes, scores=torch.rand(5), labels=torch.zeros(5).long(), masks=masks)
        samples.append(dict(img_id=i, ori_shape=(50, 60), pred_instances=found))
    return samples


def test_masks_encoded_beside_the_network_are_mmdets(tmp_path):
    samples = coco_samples(20)  # more than may wait
    ours, figures = coco_results(tmp_path, samples, "CocoAP")
    theirs, expected = coco_results(tmp_path, samples, "mmdet.FasterCocoMetric")
    assert figures == expected and 0.1 < figures["coco/segm_mAP"] < 1
    assert len(ours) == len(theirs)
    for (_, mine), (_, other) in zip(ours, theirs, strict=True):
        assert mine["masks"] == other["masks"] and len(mine["masks"]) == 5
        assert mine["img_id"] == other["img_id"]
    assert all(isinstance(sample["pred_instances"]["masks"], torch.Tensor) for sample in samples)


def test_a_mask_that_cannot_be_encoded_ends_the_evaluation(tmp_path):
    samples = coco_samples(2)
    samples[1]["pred_instances"]["masks"] = torch.rand(50) > 0.5
    with pytest.raises(ValueError):
        coco_results(tmp_path, samples, "CocoAP")


def test_inference_dtype_is_one_of_three():
    path = REPOSITORY / "configs" / "detection" / "cascade_convnext_t.py"
    assert inference_dtype(load_config(path)) == torch.float32
    config = load_config(path, {"inference_dtype": "bfloat16"})
    assert inference_dtype(config) == torch.bfloat16
    with pytest.raises(InputError) as caught:
        load_config(path, {"inference_dtype": "bfloat61"})
    assert "inference_dtype" in str(caught.value) and "bfloat16" in str(caught.value)


def test_inference_dtype_leaves_weights_alone():
    model = torch.nn.Linear(3, 3)
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", enabled=False), inference_autocast(model, dtype):
            assert model(torch.ones(1, 3)).dtype == dtype
    assert model.weight.dtype == torch.float32


def test_predictor_reads_the_inference_dtype(tmp_path):
    """The runner's loops: tests/training/test_runner.py."""
    from mmengine.runner import save_checkpoint

    from backbones.openmmlab.prediction.predictor import Predictor

    config = narrow("mask_rcnn")
    config.test_dataloader.dataset.metainfo = dict(classes=tuple("abcdef"))
    config.inference_dtype = "bfloat16"
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    save_checkpoint(dict(state_dict=model.state_dict()), str(tmp_path / "x.pth"))
    predictor = Predictor(config, str(tmp_path / "x.pth"), device="cpu")
    seen = []
    head = predictor.model.roi_head.bbox_head
    hook = head.fc_cls.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    predictor(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    hook.remove()
    assert set(seen) == {torch.bfloat16}
