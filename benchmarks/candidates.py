"""Build libraries and ways to run them, on the same weights and images."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torchvision.ops import box_iou

from backbones import ConvNeXt, fuse
from backbones.convnext import Block
from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.weights import load_strictly

from .cases import Case, detection_batch, segmentation_batch
from .peers import backbone_of, model_of, randomise, stock_config

CONFIGS = Path(__file__).parents[1] / "configs"
OUR_CONFIGS = {
    "mmdet": CONFIGS / "detection" / "cascade_convnext_t.py",
    "mmseg": CONFIGS / "segmentation" / "upernet_convnext_t.py",
}
LIBRARIES = ("mmpretrain", "timm", "torchvision", "transformers")
# Largest difference of a candidate's maps, of magnitude 1 to 10, from the first one's.
ALLOWED = {"fp32": 1e-4, "bf16": 0.5}


@dataclass
class Candidate:
    """Hold a library run in one way, and its measurements.

    Attributes:
        name: the library and how it is run.
        run: computes the case once and returns its output.
        seconds: time of each round.
        peak_mib: memory that the case takes beyond the model's own.
        difference: the largest difference of its output from the first one's; for a detector or
            segmentor the share of pixels or boxes that differ.
    """

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    difference: float = 0.0


def backbones(case: Case, peers: list[str], ways: list[str], device: str) -> Iterator[Candidate]:
    """Build our backbone and the peers' on one batch of noise; the first is mmpretrain, eager."""
    torch.manual_seed(0)
    ours = ConvNeXt(
        case.network,
        use_grn=case.grn,
        drop_path_rate=case.drop_path_rate,
        layer_scale_init_value=0.0 if case.grn else 1.0,
    )
    randomise(ours)
    images = torch.randn(case.size[0], 3, *case.size[1:], device=device)
    for library in [*peers[:1], "ours", *peers[1:]]:
        for way in ways:
            model = ours
            if library != "ours":
                model = backbone_of(library, ours, case.drop_path_rate)
            if model is None:
                continue
            model.to(device)
            if way == "channels-last":
                if library == "ours":  # whose maps are channels-last in any case
                    continue
                cast(Any, model).to(memory_format=torch.channels_last)
            inputs = images.contiguous(
                memory_format=torch.channels_last
                if way == "channels-last"
                else torch.contiguous_format
            )
            if way == "fused":
                if library != "ours" or case.task == "train":
                    continue
                model = fuse(ours.eval(), torch.bfloat16 if case.dtype == "bf16" else torch.float32)
            # A minute of compiling each, on a GPU's short time: timm's is the one to compare with.
            if way == "max-autotune" and library not in ("ours", "timm"):
                continue
            if way == "triton":
                if library != "ours":
                    continue
                model = with_kernels(ours)
            network = model
            if way in ("compiled", "max-autotune"):
                mode = None if way == "compiled" else way
                network = torch.compile(model, mode=mode)
            for dtype in dict.fromkeys(["fp32", case.dtype]):
                if dtype != case.dtype and (library, way) != (peers[0], "eager"):
                    continue
                yield Candidate(
                    f"{library} {way}{' bf16' * (dtype == 'bf16')}",
                    partial(run_backbone, case, model, network, inputs, dtype),
                )


def with_kernels(ours: ConvNeXt) -> ConvNeXt:
    """Return the network with Triton's kernels in its blocks."""
    network = deepcopy(ours)
    for module in network.modules():
        if isinstance(module, Block):
            module.kernels = "triton"
    return network


def run_backbone(
    case: Case, model: nn.Module, network: Callable[..., Any], images: Tensor, dtype: str
) -> list[Tensor]:
    with autocast(dtype, images.device):
        if case.task == "inference":
            if model.training:
                model.eval()
            with torch.inference_mode():
                return list(network(images))
        if not model.training:
            model.train()
        loss = cast(Tensor, sum(x.float().square().mean() for x in network(images)))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def whole_models(case: Case, device: str) -> Iterator[Candidate]:
    """Build OpenMMLab's published ConvNeXt-T model as installed, and ours with its weights."""
    library = "mmseg" if case.network == "UperNet" else "mmdet"
    torch.manual_seed(0)
    stock = model_of(stock_config(library), case.drop_path_rate)
    randomise(stock)
    small = Case(case.network, "train", (2, 256, 320))
    calibrate(stock, segmentation_batch(small) if library == "mmseg" else detection_batch(small))
    if library == "mmdet":  # or no box of random weights passes the threshold
        for head in cast(Any, stock.roi_head).bbox_head:
            head.fc_cls.weight.data.mul_(200)
    config = load_config(OUR_CONFIGS[library])
    ours = model_of(config, case.drop_path_rate)
    load_strictly(ours, dict(state_dict=stock.state_dict()), "the stock model")
    if not case.window and library == "mmseg":
        for model in (stock, ours):
            cast(Any, model.test_cfg).mode = "whole"
    batch = segmentation_batch(case) if library == "mmseg" else detection_batch(case)
    for dtype in dict.fromkeys(["fp32", case.dtype]):
        for name, model in (("stock", stock), ("ours", ours)):
            if dtype != case.dtype and name == "ours":
                continue
            model.to(device)
            yield Candidate(
                f"{name} {library}{' bf16' * (dtype == 'bf16')}".replace("ours mm", "ours for mm"),
                partial(run_model, case, model, batch, dtype),
            )


def calibrate(model: BaseModel, batch: dict) -> None:
    """Set batch norm's statistics from a batch, without which random features are constant."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(**model.train().data_preprocessor(batch, True), mode="loss")
    for norm in norms:
        norm.momentum = 0.1


def run_model(case: Case, model: BaseModel, batch: dict, dtype: str) -> list:
    device = next(model.parameters()).device
    batch = dict(
        inputs=list(batch["inputs"]), data_samples=[s.clone() for s in batch["data_samples"]]
    )
    if case.task == "inference":
        if model.training:
            model.eval()
        with torch.inference_mode(), autocast(dtype, device):
            return model.test_step(batch)
    if not model.training:
        model.train()
    torch.manual_seed(1)
    with autocast(dtype, device):
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def autocast(dtype: str, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def difference(first: list, other: list, dtype: str) -> float:
    """Return how far an output in `dtype` is from the first candidate's (see `Candidate`).

    Boxes are the same within 0.05 pixels; in bf16, where stock mmdet rounds their corners to whole
    pixels and more, if they overlap by half.
    """
    if not first or isinstance(first[0], Tensor):
        pairs = zip(first, other, strict=True)
        return max(((a.float() - b.float()).abs().max().item() for a, b in pairs), default=0.0)
    a, b = first[0], other[0]
    if "pred_sem_seg" in a:
        return (a.pred_sem_seg.data != b.pred_sem_seg.data).float().mean().item()
    a, b = a.pred_instances, b.pred_instances
    if not len(a):
        raise InputError(
            "the reference detector returns no boxes, so outputs cannot be compared", code="no-data"
        )
    if not len(b):
        return 1.0
    one, two = a.bboxes.float(), b.bboxes.float()
    alike = torch.cdist(one, two, p=float("inf")) <= 0.05
    if dtype == "bf16":
        alike = box_iou(one, two) >= 0.5
    found = (alike & (a.labels[:, None] == b.labels)).any(1)
    return 1 - found.float().mean().item()


def check(case: Case, candidates: list[Candidate]) -> None:
    """Run every candidate once in inference and compare the outputs.

    Raises:
        InputError: a candidate computes another function.
    """
    inference = Case(case.network, "inference", case.size, case.dtype, case.grn, case.window)
    first = None
    for candidate in candidates:
        _, *arguments = candidate.run.args
        output = candidate.run.func(inference, *arguments)
        first = output if first is None else first
        dtype = "bf16" if candidate.name.endswith("bf16") else "fp32"
        candidate.difference = difference(first, output, dtype)
        allowed = ALLOWED[dtype]
        if candidate.difference > (allowed if case.is_backbone else 0.02 + allowed):
            raise InputError(
                f"{case.name}: {candidate.name} differs from {candidates[0].name} by "
                f"{candidate.difference:.2g}; nothing was timed",
                code="checkpoint-mismatch",
                where=candidate.name,
            )
