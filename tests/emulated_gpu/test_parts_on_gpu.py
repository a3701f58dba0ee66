"""Check that heads and neck never make the host wait, and that each compiles to one graph."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support.detectors import METHODS, narrow
from support.running import SEGMENTATION
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import backbones.openmmlab.segmentation  # noqa: F401  registers its data preprocessor and heads
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.machine import fit_to_machine

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start

PARTS = ["neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head"]
PARTS = [(method, part) for method in METHODS for part in PARTS]
PARTS += [("upernet", "decode_head"), ("upernet", "auxiliary_head")]


def part_of(method: str, name: str) -> tuple[nn.Module, list[Tensor] | Tensor]:
    """Return a part of a narrow model on the GPU, and what its forward pass takes."""
    if method == "upernet":
        config = load_config(SEGMENTATION)
        fit_to_machine(config)
        scope, dims = "mmseg", (40, 80, 160, 320)
    else:
        config, scope, dims = narrow(method), "mmdet", (8, 12, 16, 20)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config.model)
    part = model.get_submodule(name)
    part = part[-1] if isinstance(part, nn.ModuleList) else part

    def maps(*sizes: tuple[int, ...]) -> list[Tensor]:
        return [torch.zeros(size, device="cuda", requires_grad=True) for size in sizes]

    pyramid = [(2, c, 32 >> i, 32 >> i) for i, c in enumerate(dims)]
    if name == "rpn_head":
        pyramid = [(2, 16, *size[2:]) for size in pyramid]
    if name.startswith("roi_head"):
        side = 7 if "bbox" in name else 14
        return part.cuda().train(), maps((6, 16, side, side))[0]
    return part.cuda().train(), maps(*pyramid)


def step(forward, inputs) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        outputs = forward(inputs)
    leaves = [y for y in torch.utils._pytree.tree_leaves(outputs) if isinstance(y, Tensor)]
    torch.stack([y.float().sum() for y in leaves]).sum().backward()


@pytest.mark.parametrize(("method", "name"), PARTS)
def test_parts_never_wait(method, name):
    part, inputs = part_of(method, name)
    step(part, inputs)  # fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(part, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("method", "name"), PARTS)
def test_parts_are_one_graph(method, name):
    torch._dynamo.reset()
    part, inputs = part_of(method, name)
    counter = CompileCounterWithBackend("aot_eager")
    step(torch.compile(part.forward, backend=counter, fullgraph=True), inputs)
    assert counter.frame_count == 1 and counter.op_count > 0


@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("with_cp", [False, True])
def test_backbone_is_one_graph(use_grn, with_cp):
    torch._dynamo.reset()
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
    net = backbones.ConvNeXt(arch, use_grn=use_grn, drop_path_rate=0.5, with_cp=with_cp)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net.cuda().train(), backend=counter, fullgraph=True)
    step(compiled, torch.zeros(2, 3, 64, 64, device="cuda"))
    assert counter.frame_count == 1 and all(p.grad is not None for p in net.parameters())
