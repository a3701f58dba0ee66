"""Train under `randomness.deterministic=True` on the emulated GPU.

The emulator calls each CUDA operator, which raises if it has no deterministic implementation.
"""

from copy import deepcopy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.detectors import batch
from support.detectors import pair as detectors
from support.oracles import randomise

import backbones.openmmlab.segmentation  # noqa: F401

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_emulator_refuses_as_cuda_does(gpu, deterministic):
    x = torch.randn(1, 2, 8, 8, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.nn.functional.adaptive_avg_pool2d(x, 3).sum().backward()


def assert_trains_as_on_the_cpu(model, call) -> None:
    """Check that the loss and a gradient of the backbone equal the CPU's after one step."""
    found = []
    for device in ("cpu", "cuda"):
        here = deepcopy(model).train().to(device)
        torch.manual_seed(3)
        total, _ = here.parse_losses(call(here, device))
        total.backward()
        found.append((total.detach(), here.backbone.stages[0][0].pwconv1.weight.grad))
    # Batch norms over a few pixels enlarge the rounding of a gradient.
    for wanted, ours, rounding in zip(*found, (1e-4, 2e-2), strict=True):
        assert wanted.any() and ours.is_cuda
        assert (ours.cpu() - wanted).abs().max() < rounding * wanted.abs().max()


@pytest.mark.parametrize("method, stock", [("cascade", False), ("mask_rcnn", True)])
def test_detector(gpu, deterministic, method, stock):
    model = detectors(method)[stock]
    images, samples = batch(truth=True)

    def losses(model, device):
        return model.loss(images.to(device), [s.to(device) for s in deepcopy(samples)])

    assert_trains_as_on_the_cpu(model, losses)


@pytest.mark.parametrize("factorize", [None, True])
def test_segmentor(gpu, deterministic, factorize):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from support.running import SEGMENTATION

    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.config.machine import fit_to_machine

    config = load_config(SEGMENTATION, {"model.backbone.drop_path_rate": 0.5})
    fit_to_machine(config)
    config.model.decode_head.factorize = factorize
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.dropout_ratio = 0.0
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomise(MODELS.build(config.model))
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 8, (2, 1, 64, 64))

    def losses(model, device):
        samples = [SegDataSample(gt_sem_seg=PixelData(data=each.to(device))) for each in labels]
        return model.loss(images.to(device), samples)

    assert_trains_as_on_the_cpu(model, losses)


def test_classifier(gpu, deterministic):
    from backbones import ConvNeXtClassifier

    net = ConvNeXtClassifier("atto", num_classes=5, drop_path_rate=0.5, layer_scale_init_value=1.0)
    logits = net.cuda().train()(torch.randn(4, 3, 64, 64, device="cuda"))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3], device="cuda")).backward()
    assert net.stages[0][0].pwconv1.weight.grad.any()
