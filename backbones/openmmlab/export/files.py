"""Write graphs as ONNX, OpenVINO's IR, torch.export programs or AOTInductor's packages."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from backbones.errors import InputError
from backbones.openmmlab.prediction.exported import (
    RT_INFO,
    Run,
    as_texts,
    open_onnx,
    open_openvino,
    open_torch,
)

from .convolutions import use_convolutions
from .tensorrt import check_for_tensorrt

OPSET = 20  # the first with a GELU, by which onnxruntime takes 0.82 to 0.89 of the time
ONE_FILE = 1_900_000_000  # bytes of weights; a protobuf ends at 2 GiB
SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that PyTorch's exporter found a node in
LAYERS = "layers"  # where an IR's metadata hold the modules of its nodes
EXAMPLE = (160, 224)  # height and width: no size that a graph might take for another


@dataclass(frozen=True)
class Captured:
    """Hold a graph as torch.export has traced it.

    Attributes:
        program: the traced graph.
        graph: the module, which names inputs, axes and outputs.
    """

    program: ExportedProgram
    graph: Any


@dataclass(frozen=True)
class Target:
    """Describe a kind of file that a graph can be written to.

    Attributes:
        suffix: suffix of its files.
        packages: what writing and running it needs beyond PyTorch.
        write: writes the file; called with (captured, path, metadata, opset).
        open: makes a function of images of a file.
        open_unoptimised: the same, where each operator runs as it stands in the file.
        prepare: changes a graph in float32 to the form that its runtime is fastest with, before it
            is captured.
        half_weights: whether weights are rounded to half precision in any case.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Captured, Path, Mapping[str, object], int], None]
    open: Callable[[Path], Run]
    open_unoptimised: Callable[[Path], Run]
    prepare: Callable[[Any], None] | None = None
    half_weights: bool = False


def capture(graph: Any) -> Captured:
    """Trace a module for every batch and image size that its `inputs` leave open.

    Raises:
        InputError: torch.export cannot write it as one graph.
    """
    axes = graph.inputs["input"]
    channels = graph.preprocessing.channels
    # One image would make the batch a constant.
    example = torch.rand(2 if 0 in axes else 1, channels, *EXAMPLE) * 255
    name = type(graph).__name__
    with torch.no_grad(), _converting(name, "torch.export cannot write it as one graph"):
        program = torch.export.export(
            graph, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.DYNAMIC),)
        )
    return Captured(program, graph)


def write_onnx(
    captured: Captured,
    path: Path,
    metadata: Mapping[str, object],
    opset: int = OPSET,
    *,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a captured graph as ONNX, weights beyond 2 GiB in `<name>.data` beside it.

    torch.onnx's exporter by torch.export and not the older one by tracing: it keeps sizes symbolic
    through every `if`, loop and padding, has exact translations of torchvision's nms and roi_align
    (onnxscript), and one captured program serves both kinds of file. The older one writes the
    example's sizes into anchors and interpolations as constants.

    Args:
        captured: what `capture` returned.
        path: the file; its folder exists.
        metadata: kept in the file, as JSON by key.
        opset: version of ONNX's operators.
        check: is called with the written file and raises an error if its runtime would refuse it.

    Raises:
        InputError: an operator has no ONNX counterpart.
    """
    import onnx

    program, graph = captured.program, captured.graph
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    with _converting(path.name, "the model has no ONNX form"):
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=opset,
            verbose=False,
        )
        converted.save(path, external_data=weights > ONE_FILE)
    model = onnx.load(path, load_external_data=False)
    _name_axes(model.graph, graph.inputs)
    onnx.helper.set_model_props(model, as_texts(metadata))
    onnx.save(model, path)
    if check is not None:
        check(path)


def write_torch(
    captured: Captured, path: Path, metadata: Mapping[str, object], opset: int = OPSET
) -> None:
    """Write a captured graph for `torch.export.load`; metadata is its extra file metadata.json.

    Args:
        captured: what `capture` returned.
        path: the file; its folder exists.
        metadata: kept in the file as JSON.
        opset: unused; ONNX files need it.
    """
    with _quiet():
        torch.export.save(
            captured.program, path, extra_files={"metadata.json": json.dumps(dict(metadata))}
        )


def write_aoti(
    captured: Captured, path: Path, metadata: Mapping[str, object], opset: int = OPSET
) -> None:
    """Compile a captured graph with AOTInductor, for this machine's processor and PyTorch.

    Such a package runs without Python (`AOTIModelPackageLoader` in C++).

    Args:
        captured, path, metadata, opset: as of `write_torch`.

    Raises:
        InputError: Inductor cannot compile it, or there is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package

    with _converting(path.name, "AOTInductor cannot compile the model", longest=200):
        aoti_compile_and_package(
            captured.program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": as_texts(metadata)},
        )


def write_openvino(
    captured: Captured, path: Path, metadata: Mapping[str, object], opset: int = OPSET
) -> None:
    """Write a captured graph as OpenVINO's IR: `path` and, beside it, weights in `<name>.bin`.

    It is converted from ONNX, whose translations of torchvision's operators are exact. Weights are
    stored in half precision, and computed with in float32.

    Args:
        captured, path, metadata, opset: as of `write_onnx`.

    Raises:
        InputError: an operator has no counterpart in ONNX or in OpenVINO.
    """
    import onnx
    import openvino

    onnx_path = path.with_suffix(".onnx")
    write_onnx(captured, onnx_path, {}, opset)
    nodes = onnx.load(onnx_path, load_external_data=False).graph.node
    metadata = {**metadata, LAYERS: {node.name: module_of(node) for node in nodes if node.name}}
    try:
        model = openvino.Core().read_model(onnx_path)  # convert_model would report its use
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path.name}: the model has no OpenVINO form ({reason})",
            code="unsupported",
            where=path.name,
        ) from error
    for key, text in as_texts(metadata).items():
        model.set_rt_info(text, [RT_INFO, key])
    openvino.save_model(model, path, compress_to_fp16=True)
    onnx_path.unlink()
    onnx_path.with_name(f"{onnx_path.name}.data").unlink(missing_ok=True)


def module_of(node: Any) -> str:
    """Return the path of the module that an ONNX node was exported from; its name if unknown."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = re.findall(r"'([^']*)'", entry.value)
            if len(scopes) > 1:
                return scopes[-2].removeprefix("model.")
    return node.name


TARGETS = {
    "onnx": Target(
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        write_onnx,
        open_onnx,
        partial(open_onnx, optimised=False),
    ),
    "openvino": Target(
        ".xml",
        ("onnx", "onnxscript", "openvino"),
        write_openvino,
        open_openvino,
        open_openvino,
        use_convolutions,
        half_weights=True,
    ),
    "tensorrt": Target(
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        partial(write_onnx, check=check_for_tensorrt),
        open_onnx,
        partial(open_onnx, optimised=False),
    ),
    "torch": Target(".pt2", (), write_torch, open_torch, open_torch),
    "aoti": Target(".pt2", (), write_aoti, open_torch, open_torch),
}


def _name_axes(graph: Any, inputs: Mapping[str, Mapping[int, str]]) -> None:
    """Give the open axes their names, where the exporter numbers its symbols."""
    names = {}
    for value in graph.input:
        for axis, name in inputs[value.name].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in graph.output:  # of a number that the image decides: of detections
        for dim in value.type.tensor_type.shape.dim:
            if re.fullmatch(r"u\d+", dim.dim_param):
                names[dim.dim_param] = "detections"
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)


@contextmanager
def _converting(name: str, refusal: str, longest: int | None = None) -> Iterator[None]:
    """Convert without warnings; name what cannot be, with the first line of the reason.

    Tracers, exporters and compilers fail in their own ways for each operator of a model.

    Args:
        name: the graph or file.
        refusal: what cannot be done.
        longest: characters of the reason at most; None for all.
    """
    try:
        with _quiet():
            yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name}: {refusal} ({reason[0][:longest]})", code="unsupported", where=name
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the deprecations of the exporter's dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def export_name(config: str, part: str, logits: bool, fp16: bool) -> str:
    """Return the name of an exported file, without its suffix, where none is given.

    Args:
        config: the config's name.
        part: what is exported.
        logits, fp16: whether logits are returned, and half precision used.
    """
    parts = [config]
    parts += [part] if part != "model" else []
    parts += ["logits"] * logits + ["fp16"] * fp16
    return "-".join(parts)


def check_output(out: Path, kind: str, overwrite: bool) -> None:
    """Check, before anything is computed, that a file may be written.

    Args:
        out: the file.
        kind: a key of `TARGETS`.
        overwrite: whether it may exist.

    Raises:
        InputError: it does not end as files of this kind do, or it exists.
    """
    suffix = TARGETS[kind].suffix
    if out.suffix != suffix:
        raise InputError(
            f"--out {out}: --to {kind} writes files that end in {suffix}",
            code="bad-argument",
            where="--out",
        )
    if out.exists() and not overwrite:
        raise InputError(
            f"{out}: exists already; --force overwrites it", code="bad-argument", where=out
        )
