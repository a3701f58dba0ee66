"""Compare the CPU and the GPU branches of model families that call mmcv's operators.

The configs are those of mmdet's and mmseg's wheels, with ConvNeXt-Atto and narrow heads.
"""

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from backbones.openmmlab import mmcv_ops
from benchmarks.compatibility import batch_for, build_family, losses_and_gradients, predict
from benchmarks.families import FAMILIES, Family
from benchmarks.gpu_branches import gpu_branches

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

FOCAL = {"sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"}
ATTENTION = {"ms_deform_attn_forward", "ms_deform_attn_backward"}
DCN = {"deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"}
MODULATED = {"modulated_deform_conv_forward", "modulated_deform_conv_backward"}
slow = pytest.mark.slow
NAMED = {family.name: family for family in FAMILIES}
# The operators that a training step of each family calls.
DETECTORS = {
    "RetinaNet": FOCAL,
    "FCOS": FOCAL,
    "ATSS": FOCAL,
    "DyHead": FOCAL | MODULATED,
    "VFNet": DCN,
    "TOOD": {"deform_conv_forward", "deform_conv_backward_input"},
    "GA-RetinaNet": FOCAL | DCN,
    "DINO": FOCAL | ATTENTION,
    "Mask2Former instance": ATTENTION,
    "FPN-CARAFE": {"carafe_forward", "carafe_backward"},
    "Deformable RoI pooling": {"deform_roi_pool_forward", "deform_roi_pool_backward"},
    "PISA Faster R-CNN": {"nms_match"},
}
QUICK = ("RetinaNet", "DyHead", "DINO")


def assert_trains_and_predicts(family: Family, operators: set[str]):
    """Check a training step on both branches, and return what the model predicts after it."""
    MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD reads it
    model = build_family(family)

    def batch() -> dict:
        return batch_for(family, model, 2)

    expected, expected_gradients = losses_and_gradients(model, batch())
    with gpu_branches() as calls:
        losses, gradients = losses_and_gradients(model, batch())
    assert operators <= set(calls), calls
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # Some are 0 except for rounding, such as that of a bias before a normalisation.
        scale = max(expected_gradients[name].abs().max().item(), 1e-3 * largest)
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-3 * scale)
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > len(gradients) / 2

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    optimizer.step()
    after, _ = losses_and_gradients(model, batch())
    assert np.isfinite(list(after.values())).all() and after != losses
    with gpu_branches():
        return predict(model, batch_for(family, model, 1))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=slow) for n in DETECTORS]
)
def test_detectors(name):
    sample = assert_trains_and_predicts(NAMED[name], DETECTORS[name])
    found = sample.pred_instances
    assert found.bboxes.isfinite().all() and found.bboxes.shape == (len(found.scores), 4)


@slow
def test_guided_anchoring_predicts_at_the_pixels_of_a_mask():
    family = NAMED["GA-RetinaNet"]
    model = build_family(family)
    with gpu_branches() as calls:
        predict(model, batch_for(family, model, 1))
    # Where no location passes its threshold, a level has no pixels.
    assert calls["masked_im2col_forward"] == calls["masked_col2im_forward"] > 0


@slow
def test_psanet():
    operators = {"psamask_forward", "psamask_backward"}
    sample = assert_trains_and_predicts(NAMED["PSANet"], operators)
    assert sample.pred_sem_seg.data.shape == (1, 64, 64)
