"""Test-time augmentation of detectors with masks: what it must equal, and that it does no harm."""

import pytest
import torch
from mmengine.registry import MODELS
from support.detectors import METHODS, assert_same_detections, batch, pair
from support.running import DETECTION

from backbones import InputError
from backbones.openmmlab.config import load_config, use_tta
from backbones.openmmlab.detection.roi_heads import paste_masks

BOX_AXES = dict(horizontal=[2], vertical=[1], diagonal=[1, 2])


def tta(model):
    return MODELS.build(dict(type="MaskTTAModel", module=model)).eval()


def view(images, samples, factor: float = 1.0, direction: str | None = None):
    """Images (3, H, W) and samples resized by a factor and flipped, as the pipeline packs them."""
    from copy import deepcopy

    inputs, packed = [], []
    for image, sample in zip(images, samples, strict=True):
        height, width = (round(side * factor) for side in sample.img_shape)
        image = image[None, :, : sample.img_shape[0], : sample.img_shape[1]]
        if factor != 1:
            image = torch.nn.functional.interpolate(image, (height, width), mode="bilinear")
        image = image[0]
        if direction:
            image = image.flip(BOX_AXES[direction])
        sample = deepcopy(sample)
        rows, columns = sample.ori_shape
        sample.set_metainfo(
            dict(
                img_shape=(height, width),
                scale_factor=(width / columns, height / rows),
                flip=direction is not None,
                flip_direction=direction,
            )
        )
        inputs.append(image)
        packed.append(sample)
    return inputs, packed


def augmented(model, *views):
    with torch.no_grad():
        merged = tta(model).test_step(
            dict(inputs=[v[0] for v in views], data_samples=[v[1] for v in views])
        )
    return [sample.pred_instances for sample in merged]


def plain(model, inputs, samples):
    with torch.no_grad():
        done = model.eval().test_step(dict(inputs=inputs, data_samples=samples))
    return [sample.pred_instances for sample in done]


@pytest.fixture
def detector(request):
    model, _ = pair(getattr(request, "param", "cascade"), torch.float64)
    model.data_preprocessor.mean.zero_()
    model.data_preprocessor.std.fill_(1)
    model.data_preprocessor._channel_conversion = False
    return model


@pytest.mark.parametrize("detector", METHODS, indirect=True)
def test_one_view_is_the_models_own_prediction(detector):
    images, samples = batch(torch.float64)
    expected = plain(detector, *view(images, samples))
    found = augmented(detector, view(images, samples))
    assert all(len(instances) > 20 for instances in expected)
    assert_same_detections(found, expected, 1e-9, 0)


def test_soft_nms_runs_once(detector):
    detector.roi_head.test_cfg.nms = dict(type="soft_nms", iou_threshold=0.5)
    images, samples = batch(torch.float64)
    expected = plain(detector, *view(images, samples))
    found = augmented(detector, view(images, samples))
    assert_same_detections(found, expected, 1e-5, 1e-4)  # mmcv's soft-NMS fills a float32 buffer


@pytest.mark.parametrize("detector", METHODS, indirect=True)
@pytest.mark.parametrize("direction", BOX_AXES)
def test_flipped_view_is_flipped_back(detector, direction):
    """The prediction for a flipped image, turned by hand."""
    images, samples = batch(torch.float64)
    flipped, packed = view(images, samples, direction=direction)
    expected = plain(detector, flipped, view(images, samples)[1])
    found = augmented(detector, (flipped, packed))
    for theirs, sample in zip(expected, samples, strict=True):
        height, width = sample.ori_shape
        x1, y1, x2, y2 = theirs.bboxes.T
        if direction != "vertical":
            x1, x2 = width - x2, width - x1
        if direction != "horizontal":
            y1, y2 = height - y2, height - y1
        theirs.bboxes = torch.stack([x1, y1, x2, y2], 1)
        theirs.masks = theirs.masks.flip(BOX_AXES[direction])
    assert expected[0].masks.any()
    assert_same_detections(found, expected, 1e-9, 1e-4)


def test_an_image_and_its_mirror_image_see_the_same(detector):
    """Under flips an image's prediction is the mirror of its mirror image's."""
    images, samples = batch(torch.float64)
    there = augmented(
        detector, view(images, samples), view(images, samples, direction="horizontal")
    )
    mirrored = view(images, samples, direction="horizontal")[0]
    packed = view(images, samples)[1]
    again = [image.flip(2) for image in mirrored]
    back = augmented(
        detector,
        (mirrored, packed),
        (again, view(images, samples, direction="horizontal")[1]),
    )
    for mine, theirs, sample in zip(there, back, samples, strict=True):
        assert len(mine) > 20
        width = sample.ori_shape[1]
        turned = theirs.bboxes.clone()
        turned[:, 0], turned[:, 2] = width - theirs.bboxes[:, 2], width - theirs.bboxes[:, 0]
        theirs.bboxes = turned
        theirs.masks = theirs.masks.flip(2)
    assert_same_detections(there, back, 1e-9, 1e-4)


def test_masks_are_the_mean_over_views(detector):
    """Two views of which one is at another scale: probabilities by hand for the merged boxes."""
    images, samples = batch(torch.float64)
    views = [view(images, samples), view(images, samples, 0.75, "horizontal")]
    found = augmented(detector, *views)
    head = detector.roi_head
    for number, (instances, sample) in enumerate(zip(found, samples, strict=True)):
        probabilities = []
        for inputs, packed in views:
            data = detector.data_preprocessor(dict(inputs=inputs, data_samples=packed), False)
            meta = packed[number].metainfo
            boxes = instances.bboxes.clone()
            if meta["flip"]:
                width = sample.ori_shape[1]
                boxes[:, 0], boxes[:, 2] = (
                    width - instances.bboxes[:, 2],
                    width - instances.bboxes[:, 0],
                )
            boxes = boxes * boxes.new_tensor([*meta["scale_factor"]] * 2)
            rois = torch.cat([boxes.new_full((len(boxes), 1), number), boxes], 1)
            with torch.no_grad():
                x = detector.extract_feat(data["inputs"])
                seen = head.mask_probabilities(x, rois, instances.labels)
            probabilities.append(seen.flip(2) if meta["flip"] else seen)
        mean = sum(probabilities) / 2
        assert (probabilities[0] - probabilities[1]).abs().max() > 0.05
        expected = paste_masks(mean, instances.bboxes, sample.ori_shape, 0.5)
        assert expected.any() and (expected != instances.masks).float().mean() < 1e-4


@pytest.mark.parametrize(
    "part, setting",
    [("rpn_head", dict(min_bbox_size=1e6)), ("roi_head", dict(score_thr=1.0))],
    ids=["proposals", "detections"],
)
def test_none_at_all(detector, part, setting):
    getattr(detector, part).test_cfg.update(setting)
    images, samples = batch(torch.float64)
    found = augmented(detector, view(images, samples), view(images, samples, 0.5, "vertical"))
    for instances, sample in zip(found, samples, strict=True):
        assert instances.masks.shape == (0, *sample.ori_shape) and len(instances.bboxes) == 0


def test_mmdets_own_heads_are_refused():
    _, theirs = pair("cascade")
    with pytest.raises(InputError) as caught:
        tta(theirs)
    assert (caught.value.code, caught.value.where) == ("unsupported", "CascadeRCNN")


def test_protocols_of_the_configs():
    for name, sizes in (("cascade_convnext_t", 3), ("cascade_convnext_atto_demo", 3)):
        for protocol, scales in (("flip", 1), ("multi_scale", sizes)):
            config = load_config(DETECTION.with_name(f"{name}.py"))
            own = config.test_dataloader.dataset.pipeline[1].scale
            use_tta(config, protocol)
            resizes, flips, _ = config.test_dataloader.dataset.pipeline[1].transforms
            assert len(resizes) == scales and own in [step.scale for step in resizes]
            assert [step.prob for step in flips] == [0.0, 1.0]
            assert config.model.type == "MaskTTAModel"
