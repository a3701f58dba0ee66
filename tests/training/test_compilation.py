"""Compiled parts compute what eager ones do, and multi-scale training stops compiling."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.oracles import randomise
from support.running import DETECTION, SEGMENTATION
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from backbones import ConvNeXt, fuse
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.training.compilation import compile_parts

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


def losses(model: nn.Module, batches: list[dict], visited: list[dict] | None = None) -> list[float]:
    """Losses of training; the weights before each step are appended to `visited`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    values = []
    for step in range(len(batches)):
        if visited is not None:
            visited.append(copy.deepcopy(model.state_dict()))
        loss = loss_of(model, batches[step], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def loss_of(model: nn.Module, data: dict, step: int) -> torch.Tensor:
    torch.manual_seed(step)
    data = model.data_preprocessor(copy.deepcopy(data), True)
    return model.parse_losses(model(**data, mode="loss"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_twenty_steps_have_the_losses_of_eager(path):
    """At the weights that eager training visits, to rounding; left alone, within eager's own noise.

    The noise is what weights moved by a millionth make of the same twenty steps: samplers of
    regions and of hard pixels choose others, and the losses part.
    """
    torch.manual_seed(0)
    data = [batch(path is DETECTION, 128, 128) for _ in range(2)] * (STEPS // 2)
    visited = []
    eager = torch.tensor(losses(model_of(path), data, visited))
    assert eager[-1] < eager[0]
    noise = 0.0
    for _ in range(2):
        moved = model_of(path)
        for parameter in moved.parameters():
            parameter.data.mul_(1 + 1e-6 * torch.randn_like(parameter))
        noise = max(noise, (torch.tensor(losses(moved, data)) / eager - 1).abs().max().item())

    model = model_of(path)
    names = set(model.state_dict())
    parts = compile_parts(model)
    assert "backbone" in parts and set(model.state_dict()) == names
    followed = []
    # Stochastic depth and dropout draw the same numbers in a graph as outside it.
    with torch._inductor.config.patch(fallback_random=True):
        left_alone = torch.tensor(losses(model, data))
        for step, weights in enumerate(visited):
            model.load_state_dict(weights)
            followed.append(loss_of(model, data[step], step).item())
    assert (left_alone / eager - 1).abs().max() < 3 * noise
    differences = (torch.tensor(followed) / eager - 1).abs()
    assert differences.median() < 1e-5 and differences.max() < 1e-2, differences


@pytest.mark.slow
@pytest.mark.parametrize("path", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_multi_scale_training_stops_compiling(path):
    model = model_of(path)
    counter = CompileCounterWithBackend("aot_eager")
    compile_parts(model, backend=counter)
    # Stride 32 makes odd and even maps of these; the neck's pooling needs a graph for each pair.
    sizes = [(128, 160), (160, 192), (192, 128), (160, 160)]
    sizes += [(192, 192), (224, 160), (128, 224), (160, 128)]
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


@pytest.mark.instruction_set
@pytest.mark.parametrize(
    "dtype, grn, fused",
    [
        (None, False, False),
        (torch.bfloat16, True, False),
        (torch.bfloat16, False, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (torch.bfloat16, False, False),
                (None, True, False),
                (None, False, True),
                (None, True, True),
                (torch.bfloat16, True, True),
            )
        ),
    ],
)
def test_inference_on_a_cpu_keeps_blocks_by_rows(dtype, grn, fused):
    """Inductor would write each block's hidden map out whole."""
    arch = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    scale = 0.0 if grn else 1.0
    network = randomise(ConvNeXt(arch, use_grn=grn, layer_scale_init_value=scale)).eval()
    if fused:
        network = fuse(network, dtype or torch.float32)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None and not fused):
        for size in ((64, 96), (96, 64), (160, 128)):
            x = torch.randn(2, 3, *size)
            for ours, eager in zip(compiled(x), network(x), strict=True):
                assert ours.dtype == eager.dtype
                torch.testing.assert_close(ours, eager)
    assert len(graphs) <= 2
    called = [node.target for node in graphs[-1].graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.convnext.norm_mlp.default) == sum(arch["depths"])
    assert torch.nn.functional.gelu not in called


@pytest.mark.instruction_set
def test_operator_by_rows_is_described_rightly():
    """What torch.compile believes of its result: shape, dtype, nothing written in place."""
    x, residual = torch.randn(2, 5, 4, 8, dtype=torch.bfloat16), torch.randn(2, 5, 4, 8)
    norm = (torch.rand(8), torch.rand(8))
    linears = [torch.randn(size).bfloat16() for size in ((32, 8), (32,), (8, 32), (8,))]
    for scale, beside in ((None, None), (torch.rand(8), residual)):
        arguments = (x, *norm, *linears, None, None, scale, 1e-6, beside)
        torch.library.opcheck(torch.ops.convnext.norm_mlp.default, arguments)
