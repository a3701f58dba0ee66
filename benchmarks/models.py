"""Build backbones and whole models, ours and other libraries', with the same weights, and run them.

What `build_...` returns computes a case and gives its output as arrays: the maps of a backbone, the
labels of a segmentor's pixels, or boxes and labels of a detector.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import ConvNeXt, fuse
from backbones.convnext import Block
from backbones.openmmlab.config import load_config
from backbones.weights import load_strictly

from .cases import Case, detection_batch, segmentation_batch
from .peers import backbone_of, model_of, randomise, stock_config

CONFIGS = Path(__file__).parents[1] / "configs"
OUR_CONFIGS = {
    "mmdet": CONFIGS / "detection" / "cascade_convnext_t.py",
    "mmseg": CONFIGS / "segmentation" / "upernet_convnext_t.py",
}
Run = Callable[[Case], list[np.ndarray]]


def our_backbone(case: Case) -> ConvNeXt:
    """Return our network with the weights of every candidate."""
    torch.manual_seed(0)
    ours = ConvNeXt(
        case.network,
        use_grn=case.grn,
        drop_path_rate=case.drop_path_rate,
        layer_scale_init_value=0.0 if case.grn else 1.0,
    )
    randomise(ours)
    return ours


def noise(case: Case) -> Tensor:
    """Return the images that every backbone is given."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.size[0], 3, *case.size[1:], generator=generator)


def build_backbone(case: Case, library: str, way: str, dtype: str, device: str) -> Run:
    """Build a library's backbone with our weights, to be run in one way.

    Args:
        library: "ours", or what `backbone_of` knows.
        way: "eager", "channels-last", "fused", "compiled", "max-autotune" or "triton".
        dtype: "fp32", or "bf16" by autocast.
    """
    ours = our_backbone(case)
    model: Any = ours if library == "ours" else backbone_of(library, ours, case.drop_path_rate)
    images = noise(case).to(device)
    if way == "fused":
        model = fuse(ours.eval(), torch.bfloat16 if dtype == "bf16" else torch.float32)
    elif way == "triton":
        for block in model.modules():
            if isinstance(block, Block):
                block.kernels = "triton"
    model.to(device)
    if way == "channels-last":
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    network = model
    if way in ("compiled", "max-autotune"):
        if torch.backends.cpu.get_cpu_capability() == "AVX2":
            # Inductor asks the processor, and not PyTorch, which may be restricted to AVX2.
            import_module("torch._inductor.config").cpp.simdlen = 256
        network = torch.compile(model, mode=None if way == "compiled" else way)
    return partial(_run_backbone, model, network, images, dtype)


def _run_backbone(
    model: nn.Module, network: Callable[..., Any], images: Tensor, dtype: str, case: Case
) -> list[np.ndarray]:
    with autocast(dtype, images.device):
        if case.task == "inference":
            if model.training:
                model.eval()
            with torch.inference_mode():
                return [x.float().cpu().numpy() for x in network(images)]
        if not model.training:
            model.train()
        loss = cast(Tensor, sum(x.float().square().mean() for x in network(images)))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def library_of(case: Case) -> str:
    return "mmseg" if case.network == "UperNet" else "mmdet"


def whole_model(case: Case, ours: bool) -> BaseModel:
    """Return OpenMMLab's published ConvNeXt-T model as installed, or ours with its weights."""
    library = library_of(case)
    torch.manual_seed(0)
    stock = model_of(stock_config(library), case.drop_path_rate)
    randomise(stock)
    small = Case(case.network, "train", (2, 256, 320))
    _calibrate(stock, segmentation_batch(small) if library == "mmseg" else detection_batch(small))
    if library == "mmdet":  # or no box of random weights passes the threshold
        for head in cast(Any, stock.roi_head).bbox_head:
            head.fc_cls.weight.data.mul_(200)
    model = stock
    if ours:
        model = model_of(load_config(OUR_CONFIGS[library]), case.drop_path_rate)
        load_strictly(model, dict(state_dict=stock.state_dict()), "the stock model")
    if not case.window and library == "mmseg":
        cast(Any, model.test_cfg).mode = "whole"
    return model


def batch_of(case: Case) -> dict:
    """Return the images that every whole model is given."""
    torch.manual_seed(2)
    return segmentation_batch(case) if library_of(case) == "mmseg" else detection_batch(case)


def build_model(case: Case, ours: bool, dtype: str, device: str) -> Run:
    """Build `whole_model` on a device.

    Args:
        dtype: "fp32", or "bf16" by autocast.
    """
    model = whole_model(case, ours)
    model.to(device)
    return partial(_run_model, model, batch_of(case), dtype)


def _calibrate(model: BaseModel, batch: dict) -> None:
    """Set batch norm's statistics from a batch, without which random features are constant."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(**model.train().data_preprocessor(batch, True), mode="loss")
    for norm in norms:
        norm.momentum = 0.1


def _run_model(model: BaseModel, batch: dict, dtype: str, case: Case) -> list[np.ndarray]:
    device = next(model.parameters()).device
    batch = fresh(batch)
    if case.task == "inference":
        if model.training:
            model.eval()
        with torch.inference_mode(), autocast(dtype, device):
            return arrays(model.test_step(batch)[0])
    if not model.training:
        model.train()
    torch.manual_seed(1)
    with autocast(dtype, device):
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def fresh(batch: dict) -> dict:
    """Copy a batch as far as a model writes into it."""
    samples = [deepcopy(sample) for sample in batch["data_samples"]]
    return dict(inputs=list(batch["inputs"]), data_samples=samples)


def arrays(sample: Any) -> list[np.ndarray]:
    """Return the labels of a predicted sample's pixels, or its boxes and their labels."""
    if "pred_sem_seg" in sample:
        return [sample.pred_sem_seg.data.cpu().numpy()]
    found = sample.pred_instances
    return [found.bboxes.float().cpu().numpy(), found.labels.cpu().numpy()]


def autocast(dtype: str, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()
