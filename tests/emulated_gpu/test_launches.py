"""Hold the kernel launches of a training step within a written budget.

A launch takes the host a few microseconds, and with 2 images a GPU the recipes are bound by them
(docs/gpu.md). cuDNN is off on the emulated GPU, so convolutions there take more than on a real one.
A change that needs more launches than here is noticed; one that needs fewer lowers the number.
"""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.detectors import batch
from support.detectors import pair as detectors
from support.emulated_gpu.preloading import counted
from support.oracles import randomise

import backbones

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start

SLACK = 1.05  # of the numbers below, which were counted with PyTorch 2.11
BACKBONE = {False: 397, True: 499}  # V1 and V2, all launches: forward, backward, optimizer
UPERNET = {None: 911, True: 990}  # operators of a step, by `factorize`
CASCADE = 3326  # operators of a step, two images with three objects each


def within(found: int, budget: int) -> None:
    assert budget / SLACK**2 <= found <= budget * SLACK, (found, budget)


@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
def test_backbone(use_grn):
    arch = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    net = backbones.ConvNeXt(arch, use_grn=use_grn, drop_path_rate=0.5).cuda().train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.zeros(2, 3, 64, 64, device="cuda")

    def step():
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            maps = net(x)
        torch.stack([y.float().sum() for y in maps]).sum().backward()
        optimizer.step()

    step()
    within(counted(step)["launches"], BACKBONE[use_grn])


def operators_of(gpu, model, images, samples) -> int:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        torch.manual_seed(3)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            total, _ = model.parse_losses(model.loss(images, samples))
        total.backward()
        optimizer.step()

    step()
    gpu.reset()
    step()
    return gpu.ops.total()


@pytest.mark.parametrize("factorize", [None, True])
def test_upernet(gpu, factorize):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from support.running import SEGMENTATION

    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.config.machine import fit_to_machine

    config = load_config(SEGMENTATION, {"model.backbone.drop_path_rate": 0.5})
    fit_to_machine(config)
    config.model.decode_head.factorize = factorize
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomise(MODELS.build(config.model)).cuda().train()
    labels = torch.randint(0, 8, (2, 1, 64, 64)).cuda()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]
    images = torch.randn(2, 3, 64, 64, device="cuda")
    within(operators_of(gpu, model, images, samples), UPERNET[factorize])


def test_cascade(gpu):
    model, _ = detectors("cascade")
    images, samples = batch(truth=True)
    model = model.cuda().train()
    samples = [sample.to("cuda") for sample in samples]
    within(operators_of(gpu, model, images.cuda(), samples), CASCADE)
