"""Open exported files, ONNX, OpenVINO's IR and PyTorch's .pt2, and predict with them."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.errors import InputError
from backbones.openmmlab.tasks import Sample, task_of_scope
from backbones.packages import require
from backbones.weights import is_trusted

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
Opened = tuple[Run, Mapping[str, str]]  # a function of images, and the file's metadata by key
RT_INFO = "convnext"  # section of an IR's runtime information
PLAIN = ("scope", "part", "precision")  # texts as they stand; the others are JSON
UNOPENED = "cannot be opened; it is damaged, or needs another version of its runtime"
NEEDED = (*PLAIN, "pipeline", "classes", "palette", "outputs", "postprocessing")


@dataclass(frozen=True)
class Runtime:
    """Describe what runs a kind of exported file.

    Attributes:
        packages: what it needs beyond PyTorch.
        open: opens a file as a function of images, with its metadata.
    """

    packages: tuple[str, ...]
    open: Callable[[Path], Opened]


def open_onnx(path: Path, *, optimised: bool = True) -> Run:
    """Open a file in onnxruntime on the CPU, as a function of images (N, 3, H, W).

    Args:
        optimised: False runs each operator as it stands in the file.
    """
    return _open_onnx(path, optimised)[0]


def open_openvino(path: Path, precision: str = "f32") -> Run:
    """Open OpenVINO's IR on the CPU as a function of images (N, 3, H, W).

    Args:
        precision: what OpenVINO may compute in, "f32" or "bf16".
    """
    return _open_openvino(path, precision)[0]


def open_torch(path: Path) -> Run:
    """Open a program or a compiled package on the CPU, as a function of images (N, 3, H, W)."""
    return _open_torch(path)[0]


class ExportedModel:
    """Predict with an exported file as its model does, behind the config's test pipeline.

    Args:
        path: a file that `tools/export.py` wrote of a whole model; one that holds machine code
            is opened where the user trusts checkpoints (`backbones.weights.trusted`).

    Attributes:
        scope: `default_scope` of its config.
        task: the task's name.
        classes: class names in the order of the labels.
        palette: (classes, 3) uint8 RGB, or None.
        pipeline: the steps of the test pipeline, without annotations.
        outputs: the names of the file's outputs.
        precision: "fp32", "fp16", "int8", or "fp16 weights" of a file that computes in float32.

    Raises:
        InputError: the file is missing, damaged, of a backbone alone or not of this suite, or its
            runtime is not installed.
    """

    def __init__(self, path: Path):
        runtime = RUNTIMES[path.suffix]
        if not path.is_file():
            raise InputError(f"{path}: no such file", code="not-found", where=path)
        require(f"{path.name}", *runtime.packages)
        if path.suffix == ".pt2" and holds_machine_code(path) and not is_trusted():
            raise InputError(
                f"{path}: holds machine code (AOTInductor), which runs as it is opened; "
                "--trust-checkpoint opens it",
                code="unsafe-checkpoint",
                where=path,
            )
        try:
            run, stored = runtime.open(path)
        except (RuntimeError, ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise _refused(path, UNOPENED, error) from error
        except Exception as error:
            # onnxruntime's own exceptions derive from nothing narrower.
            if type(error).__module__.partition(".")[0] not in {"onnxruntime", "openvino"}:
                raise
            raise _refused(path, UNOPENED, error) from error
        if any(key not in stored for key in NEEDED):
            raise _refused(path, "was not written by this version of `convnext export`; export it")
        if stored["part"] != "model":
            raise _refused(path, "holds a backbone alone, which predicts no objects or classes")
        self.run = _reporting(run, path)
        metadata = {key: json.loads(stored[key]) for key in NEEDED if key not in PLAIN}
        self.scope = stored["scope"]
        task = task_of_scope(self.scope)
        self.task = task.name
        self.classes = tuple(metadata["classes"])
        palette = metadata["palette"]
        self.palette = None if palette is None else np.array(palette, dtype=np.uint8)
        self.pipeline = [_with_tuples(step) for step in metadata["pipeline"]]
        self.outputs = tuple(metadata["outputs"])
        self.precision = stored["precision"]
        self._settings = metadata["postprocessing"]
        assert task.export is not None  # or the file could not have been written
        self._export = task.export

    def test_step(self, batch: dict) -> list[Sample]:
        """Predict a batch that the test pipeline made, in pixels of the original images."""
        found = []
        samples = self._export.samples(batch)
        for inputs, sample in zip(batch["inputs"], samples, strict=True):
            outputs = self.run(inputs[None].float().contiguous().numpy())
            tensors = [torch.from_numpy(np.array(x)) for x in outputs]
            found.append(self._export.sample(tensors, sample.clone(), self._settings))
        return found


def is_exported(path: object) -> bool:
    """Return whether a path ends as exported files do."""
    return isinstance(path, str | os.PathLike) and Path(path).suffix in RUNTIMES


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return metadata as files hold it: texts as they stand, anything else as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


def _reporting(run: Run, path: Path) -> Run:
    """Let whatever a runtime raises for an image end in one line."""

    def reported(images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            return run(images)
        except Exception as error:  # each runtime has its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            size = "x".join(map(str, images.shape))
            raise InputError(
                f"{path}: cannot compute an input of {size} ({reason[0][:200]})",
                code="unsupported",
                where=path,
            ) from error

    return reported


def _refused(path: Path, what: str, error: Exception | None = None) -> InputError:
    """Refuse a file; what is wrong stands at the end of what its runtime raised."""
    lines = str(error or "").strip().splitlines()
    reason = f" ({lines[-1].strip()[-200:]})" if lines else ""
    return InputError(f"{path}: {what}{reason}", code="broken-file", where=path)


def _open_onnx(path: Path, optimised: bool = True) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    stored = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {name: images}), stored


def _open_openvino(path: Path, precision: str = "f32") -> Opened:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    threads = torch.get_num_threads()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", hints)
    present = [key for key in NEEDED if model.has_rt_info([RT_INFO, key])]
    stored = {key: str(model.get_rt_info([RT_INFO, key]).value) for key in present}

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = compiled([images])
        return [np.array(found[output]) for output in compiled.outputs]

    return run, stored


def holds_machine_code(path: Path) -> bool:
    """Return whether a .pt2 file is AOTInductor's: opening it runs the code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("data/aotinductor/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False  # opening it will say what it is


def _open_torch(path: Path) -> Opened:
    import torchvision  # noqa: F401  # the program calls its operators

    module, stored = (_load_compiled if holds_machine_code(path) else _load_program)(path)

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in module(torch.from_numpy(images))]

    return run, stored


def _load_program(path: Path) -> tuple[Callable, Mapping[str, str]]:
    files = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path, extra_files=files).module()
    return module, as_texts(json.loads(files["metadata.json"] or "{}"))


def _load_compiled(path: Path) -> tuple[Callable, Mapping[str, str]]:
    from torch._inductor import aoti_load_package

    module = aoti_load_package(str(path))
    return module, module.get_metadata()


def _with_tuples(value: Any) -> Any:
    """Return a step's arguments with tuples where JSON has lists: pipelines test for tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


RUNTIMES = {
    ".onnx": Runtime(("onnxruntime",), partial(_open_onnx, optimised=True)),
    ".xml": Runtime(("openvino",), _open_openvino),
    ".pt2": Runtime((), _open_torch),
}
