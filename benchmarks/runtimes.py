"""Export our models to files of other runtimes, with the same weights, and run them on the CPU."""

import re
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

from backbones.openmmlab.deployment.layers import Quantizer, has_narrow_weights
from backbones.openmmlab.deployment.onnx_int8 import OnnxQuantizer
from backbones.openmmlab.deployment.openvino_int8 import OpenvinoQuantizer
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
        quantizer: makes INT8 of its files.
        bf16: whether it computes in bfloat16 on a CPU.
    """

    target: Target
    open: Callable[[Path, str], RunFile]
    quantizer: Callable[..., Quantizer]
    bf16: bool

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """Return those in which a case of a precision is run; INT8 beside float32, with VNNI."""
        if dtype == "bf16":
            return ("bf16",) * self.bf16
        return ("fp32", *("int8",) * (not has_narrow_weights()))


def _open_openvino(path: Path, dtype: str) -> RunFile:
    return open_openvino(path, "bf16" if dtype == "bf16" else "f32")


RUNTIMES = {
    "onnxruntime": Runtime(TARGETS["onnx"], lambda path, _: open_onnx(path), OnnxQuantizer, False),
    "openvino": Runtime(TARGETS["openvino"], _open_openvino, OpenvinoQuantizer, True),
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


def exported_backbone(case: Case, runtime: str, dtype: str) -> Run:
    """Build our backbone as a file of a runtime; one of INT8 is calibrated on the case's images."""
    images = noise(case).numpy()
    run = _exported(_Backbone(our_backbone(case)), runtime, dtype, images, re.compile("$^"))
    return partial(_run_backbone, run, images)


def _run_backbone(run: RunFile, images: np.ndarray, case: Case) -> list[np.ndarray]:
    return list(run(images))


def exported_model(case: Case, runtime: str, dtype: str) -> Run:
    """Build our detector or segmentor as a file of a runtime, with the task's postprocessing."""
    model: Any = whole_model(case, ours=True).eval().requires_grad_(False)
    export = task_of_model(model).export
    assert export is not None  # or it had no graph
    batch = batch_of(case)
    images = _images(fresh(batch))
    run = _exported(build_graph(model), runtime, dtype, images, export.float_layers)
    return partial(_run_model, run, export.sample, export.settings(model), batch)


def _run_model(
    run: RunFile, sample: Callable, settings: dict, batch: dict, case: Case
) -> list[np.ndarray]:
    batch = fresh(batch)
    tensors = [torch.from_numpy(np.array(x)) for x in run(_images(batch))]
    (given,) = batch["data_samples"]
    return arrays(sample(tensors, given, settings))


def _images(batch: dict) -> np.ndarray:
    return torch.stack(batch["inputs"]).float().numpy()


def _exported(
    graph: Any, runtime: str, dtype: str, images: np.ndarray, kept: re.Pattern[str]
) -> RunFile:
    known = RUNTIMES[runtime]
    if known.target.prepare:
        known.target.prepare(graph)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"model{known.target.suffix}"
        known.target.write(capture(graph), path, {}, OPSET)
        if dtype == "int8":
            quantizer = known.quantizer(path, kept, "backbone")
            quantizer.calibrate([images], folder)
            path = path.with_stem("int8")
            quantizer.write(quantizer.layers, path, {})
        return known.open(path, dtype)
