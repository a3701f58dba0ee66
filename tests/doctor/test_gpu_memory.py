"""Check what the prediction of a GPU's memory counts, with fake CUDA tensors."""

import torch
from mmengine.registry import DefaultScope
from support.detectors import narrow
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.openmmlab.detection.step_loss import step_loss
from backbones.openmmlab.doctor.complexity import build_on_meta


class Shapes(TorchDispatchMode):
    """Collect the shapes and dtypes of all tensors that operators return."""

    def __enter__(self):
        self.found = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.found.add((tuple(out.shape), out.dtype))
        return out


def test_whole_masks_are_copied_for_the_mask_targets():
    config = narrow("mask_rcnn")
    settings = config.model.train_cfg.rcnn.sampler
    regions = int(settings.num * settings.pos_fraction)  # of one image
    model = build_on_meta(config)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        DefaultScope.overwrite_default_scope("mmdet"),
    ):
        model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda")).train()
        with Shapes() as shapes:
            loss = step_loss(model, torch.empty(2, 3, 96, 160, device="cuda"), config)
    assert loss.is_cuda and regions > 1
    assert ((regions, 96, 160), torch.float32) in shapes.found
