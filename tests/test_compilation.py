"""Compiled parts compute what eager ones do, and multi-scale training stops compiling."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import randomise
from mmengine.registry import MODELS, DefaultScope
from running import DETECTION, SEGMENTATION
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from backbones import ConvNeXt
from backbones.openmmlab.compilation import compile_parts
from backbones.openmmlab.config import load_config
from backbones.openmmlab.runner import fit_to_machine

STEPS = 20


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(path: Path) -> nn.Module:
    config = load_config(path)
    config.launcher = "none"
    fit_to_machine(config)
    config.model.backbone.arch = dict(depths=(1, 1, 2, 1), dims=(40, 80, 160, 320))
    config.model.backbone.drop_path_rate = 0.2
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model).train()


def batch(detection: bool, height: int, width: int) -> dict:
    """Two images of noise with squares in them, and their boxes or label maps."""
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData
    from mmseg.structures import SegDataSample

    inputs, samples = [], []
    meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
    for i in range(2):
        image = torch.randint(0, 60, (3, height, width), dtype=torch.uint8)
        top, left, side = 8 * (i + 1), 12 * (i + 1), 24
        image[:, top : top + side, left : left + side] += 120
        mask = np.zeros((1, height, width), dtype=np.uint8)
        mask[:, top : top + side, left : left + side] = 1
        if detection:
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32),
                labels=torch.tensor([i]),
                masks=BitmapMasks(mask, height, width),
            )
        else:
            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask.astype("int64")))
        inputs.append(image)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses(model: nn.Module, batches: list[dict]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    values = []
    torch.manual_seed(3)
    for data in batches:
        data = model.data_preprocessor(copy.deepcopy(data), True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.slow
@pytest.mark.parametrize("path", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_twenty_steps_have_the_losses_of_eager(path, monkeypatch):
    # Stochastic depth and dropout draw the same numbers in a graph as outside it.
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)
    data = [batch(path is DETECTION, 128, 128) for _ in range(2)] * (STEPS // 2)
    eager = losses(model_of(path), data)
    model = model_of(path)
    names = set(model.state_dict())
    parts = compile_parts(model)
    assert "backbone" in parts and set(model.state_dict()) == names
    compiled = losses(model, data)
    assert eager[-1] < eager[0]
    assert compiled == pytest.approx(eager, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("path", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_multi_scale_training_stops_compiling(path):
    model = model_of(path)
    counter = CompileCounterWithBackend("aot_eager")
    compile_parts(model, backend=counter)
    sizes = [(64, 96), (96, 96), (128, 64), (96, 160), (160, 128), (64, 64), (128, 192), (192, 160)]
    batches = [batch(path is DETECTION, *size) for size in sizes]
    losses(model, batches[:4])
    after_four = counter.frame_count
    losses(model, batches[4:] + batches)
    assert 0 < after_four
    assert counter.frame_count - after_four <= 2


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_backbone_is_one_graph(drop_path_rate):
    arch = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    network = randomise(ConvNeXt(arch, drop_path_rate=drop_path_rate, layer_scale_init_value=1.0))
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    network.eval()
    for ours, eager in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(ours, eager)
    network.train()
    sum(m.sum() for m in compiled(x)).backward()
    assert all(p.grad is not None for p in network.parameters())
