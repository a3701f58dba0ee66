"""Export our models to files of other runtimes, with the same weights, and run them on the CPU."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones.openmmlab.export.files import OPSET, TARGETS, Target, capture
from backbones.openmmlab.export.graphs import build_graph
from backbones.openmmlab.prediction.exported import Run as RunFile
from backbones.openmmlab.prediction.exported import open_onnx, open_openvino
from backbones.openmmlab.tasks import task_of_model

from .cases import Case
from .models import Run, arrays, batch_of, fresh, noise, our_backbone, whole_model


@dataclass(frozen=True)
class Runtime:
    """Describe a runtime.

    Attributes:
        target: how its files are written.
        open: opens a file in a precision.
        precisions: those that it computes in on a CPU.
    """

    target: Target
    open: Callable[[Path, str], RunFile]
    precisions: tuple[str, ...]


def _open_openvino(path: Path, dtype: str) -> RunFile:
    return open_openvino(path, "bf16" if dtype == "bf16" else "f32")


RUNTIMES = {
    "onnxruntime": Runtime(TARGETS["onnx"], lambda path, _: open_onnx(path), ("fp32",)),
    "openvino": Runtime(TARGETS["openvino"], _open_openvino, ("fp32", "bf16")),
}


class _Backbone(nn.Module):
    """Compute the maps of a backbone from normalised images, as a graph for `capture`."""

    inputs = {"input": {0: "batch", 2: "height", 3: "width"}}
    preprocessing = SimpleNamespace(channels=3)

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.outputs = tuple(f"map{i}" for i in backbone.out_indices)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.backbone(input))


def exported_backbone(case: Case, runtime: str) -> Run:
    """Build our backbone as a file of a runtime."""
    return partial(_run_backbone, _exported(_Backbone(our_backbone(case)), case, runtime), case)


def _run_backbone(run: RunFile, built_for: Case, case: Case) -> list[np.ndarray]:
    return list(run(noise(built_for).numpy()))


def exported_model(case: Case, runtime: str) -> Run:
    """Build our detector or segmentor as a file of a runtime, with the task's postprocessing."""
    model: Any = whole_model(case, ours=True).eval().requires_grad_(False)
    export = task_of_model(model).export
    assert export is not None  # or it had no graph
    run = _exported(build_graph(model), case, runtime)
    return partial(_run_model, run, export.sample, export.settings(model), batch_of(case))


def _run_model(
    run: RunFile, sample: Callable, settings: dict, batch: dict, case: Case
) -> list[np.ndarray]:
    batch = fresh(batch)
    outputs = run(torch.stack(batch["inputs"]).float().numpy())
    tensors = [torch.from_numpy(np.array(x)) for x in outputs]
    (given,) = batch["data_samples"]
    return arrays(sample(tensors, given, settings))


def _exported(graph: Any, case: Case, runtime: str) -> RunFile:
    known = RUNTIMES[runtime]
    if known.target.prepare:
        known.target.prepare(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{known.target.suffix}"
        known.target.write(capture(graph), graph, path, {}, OPSET)
        return known.open(path, case.dtype)
