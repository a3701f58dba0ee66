"""Model families that call mmcv's operators: a step of training and a prediction, both branches.

The configs are those of mmdet's and mmseg's wheels, with ConvNeXt-Atto and narrow heads.
"""

from pathlib import Path

import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from support.mmcv_ops import gpu_branches

from backbones.openmmlab import detection, mmcv_ops, segmentation  # noqa: F401

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

FOCAL = {"sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"}
ATTENTION = {"ms_deform_attn_forward", "ms_deform_attn_backward"}
DCN = {"deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"}
MODULATED = {"modulated_deform_conv_forward", "modulated_deform_conv_backward"}
slow = pytest.mark.slow
# Config, and the operators that a step calls.
DETECTORS = {
    "retinanet/retinanet_r50_fpn_1x_coco": FOCAL,
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco": FOCAL,
    "atss/atss_r50_fpn_1x_coco": FOCAL,
    "dyhead/atss_r50_fpn_dyhead_1x_coco": FOCAL | MODULATED,
    "vfnet/vfnet_r50_fpn_1x_coco": DCN,
    "tood/tood_r50_fpn_1x_coco": {"deform_conv_forward", "deform_conv_backward_input"},
    "guided_anchoring/ga-retinanet_r50_fpn_1x_coco": FOCAL | DCN,
    "dino/dino-4scale_r50_8xb2-12e_coco": FOCAL | ATTENTION,
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco": ATTENTION,
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco": {"carafe_forward", "carafe_backward"},
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": {
        "deform_roi_pool_forward",
        "deform_roi_pool_backward",
    },
    "pisa/faster-rcnn_r50_fpn_pisa_1x_coco": {"nms_match"},
}
QUICK = ("retinanet", "dyhead", "dino")
NARROW = dict(
    embed_dims=32, feat_channels=32, feedforward_channels=32, num_feats=16, fc_out_channels=32,
    conv_out_channels=32, output_channels=32, stacked_convs=1, num_layers=1, num_blocks=1,
    num_queries=20, num_dn_queries=4, deform_fc_channels=16, num_points=2,
)  # fmt: skip
WIDTHS = [40, 80, 160, 320]  # of the maps of ConvNeXt-Atto


def narrow(node):
    """Cut the widths and depths of necks and heads, and fit them to the backbone's maps."""
    if isinstance(node, list | tuple):
        return type(node)(narrow(child) for child in node)
    if not isinstance(node, dict):
        return node
    for key, value in node.items():
        if key == "in_channels" and isinstance(value, list | tuple):
            node[key] = WIDTHS[4 - len(value) :]
        elif key in ("in_channels", "out_channels") and value == 256:
            node[key] = 32
        elif key in NARROW and isinstance(value, int):
            node[key] = NARROW[key]
        else:
            node[key] = narrow(value)
    return node


def build(library, scope: str, name: str, **changes):
    config = Config.fromfile(Path(library.__file__).parent / ".mim" / "configs" / f"{name}.py")
    model = config.model
    indices = model.backbone.get("out_indices", (0, 1, 2, 3))
    model.backbone = dict(type="ConvNeXt", arch="atto", out_indices=indices)
    config = Config(dict(model=narrow(model.to_dict())))
    config.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config.model)
    model.init_weights()  # DETRs leave embeddings uninitialised until then
    return model


def detector(name: str):
    preprocessor = dict(
        type="DetDataPreprocessor", mean=[120.0] * 3, std=[60.0] * 3, pad_size_divisor=32,
        pad_mask=True, _delete_=True,
    )  # fmt: skip
    changes = dict(data_preprocessor=preprocessor)
    if name.startswith("pisa"):
        # Untrained scores are below the threshold of the boxes that it matches.
        changes["train_cfg.rcnn.sampler.score_thr"] = 0.0
    if name.startswith("dino"):
        changes["bbox_head.embed_dims"] = 32
    if name.startswith(("dcn", "pisa")):
        changes["train_cfg.rpn_proposal.max_per_img"] = 40
        changes["test_cfg.rpn.max_per_img"] = 40
    return build(mmdet, "mmdet", name, **changes)


def detection_batch(images: int):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    size = (128, 160)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 255, (3, *size), generator=generator).byte() for _ in range(images)]
    samples = []
    for _ in inputs:
        boxes = torch.tensor([[4.0, 6, 50, 60], [40, 10, 90, 44]])
        masks = np.zeros((2, *size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([3, 17]), masks=BitmapMasks(masks, *size)
        )
        sample.ignored_instances = InstanceData(
            bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_and_gradients(model, batch):
    torch.manual_seed(5)
    model.zero_grad()
    data = model.data_preprocessor(batch, training=True)
    total, losses = model.parse_losses(model(**data, mode="loss"))
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in losses.items()}, gradients


def assert_trains_and_predicts(model, batch, one_image, operators: set[str]) -> list:
    """Check a step on both branches, and return what the model predicts after it."""
    model.train()
    expected, expected_gradients = losses_and_gradients(model, batch())
    with gpu_branches() as calls:
        losses, gradients = losses_and_gradients(model, batch())
    assert operators <= set(calls), calls
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # Some are 0 but for rounding, as of a bias before a normalisation.
        scale = max(expected_gradients[name].abs().max().item(), 1e-3 * largest)
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-3 * scale)
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > len(gradients) / 2

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    optimizer.step()
    after, _ = losses_and_gradients(model, batch())
    assert np.isfinite(list(after.values())).all() and after != losses
    model.eval()
    with torch.no_grad(), gpu_branches():
        return model(**model.data_preprocessor(one_image, training=False), mode="predict")


@pytest.mark.parametrize(
    "name", [n if n.startswith(QUICK) else pytest.param(n, marks=slow) for n in DETECTORS]
)
def test_detectors(name):
    MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD asks for it
    model = detector(name)
    (sample,) = assert_trains_and_predicts(
        model, lambda: detection_batch(2), detection_batch(1), DETECTORS[name]
    )
    found = sample.pred_instances
    assert found.bboxes.isfinite().all() and found.bboxes.shape == (len(found.scores), 4)


@slow
def test_guided_anchoring_predicts_at_the_pixels_of_a_mask():
    model = detector("guided_anchoring/ga-retinanet_r50_fpn_1x_coco").eval()
    with torch.no_grad(), gpu_branches() as calls:
        model(**model.data_preprocessor(detection_batch(1), training=False), mode="predict")
    # Where no location passes its threshold, a level has no pixels.
    assert calls["masked_im2col_forward"] == calls["masked_col2im_forward"] > 0


@slow
def test_psanet():
    from mmseg.structures import SegDataSample

    def batch(images):
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randint(0, 255, (3, 64, 64), generator=generator).byte()] * images
        samples = []
        for _ in inputs:
            sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
            labels = torch.randint(0, 19, (1, 64, 64), generator=generator)
            sample.gt_sem_seg = PixelData(data=labels)
            samples.append(sample)
        return dict(inputs=inputs, data_samples=samples)

    model = build(
        mmseg, "mmseg", "psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024",
        pretrained=None,
        data_preprocessor=dict(type="SegDataPreProcessor", size=(64, 64), _delete_=True),
        decode_head=dict(in_channels=320, channels=16, mask_size=(3, 3), norm_cfg=dict(type="BN")),
        auxiliary_head=dict(in_channels=160, channels=16, norm_cfg=dict(type="BN")),
    )  # fmt: skip
    (sample,) = assert_trains_and_predicts(
        model, lambda: batch(2), batch(1), {"psamask_forward", "psamask_backward"}
    )
    assert sample.pred_sem_seg.data.shape == (1, 64, 64)
