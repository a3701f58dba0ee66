"""A trained model to a file that has been run on real images before it gets its name."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from backbones.atomic_write import write_atomically
from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.openmmlab.prediction.predictor import Predictor

from .agreement import (
    Agreement,
    BackboneAgreement,
    DetectorAgreement,
    FileBackbone,
    Images,
    SegmentorAgreement,
    compare,
    score_in_model,
)
from .files import OPSET, SUFFIXES, Run, capture, open_onnx, open_torch, write_onnx, write_torch
from .graphs import BackboneGraph, build_graph, enlarge_activations

# Largest relative difference, and change of a score, that a file may have from its model.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}
ENLARGED = 1000.0  # times the activations of real images: their squares are far beyond fp16
LARGEST = 2.0**14  # of an enlarged activation itself, which has to fit fp16


def export(
    config: Config,
    checkpoint: str,
    out: Path,
    target: str,
    *,
    part: str = "model",
    logits: bool = False,
    fp16: bool = False,
    images: int = 8,
    tolerance: float | None = None,
    opset: int = OPSET,
) -> tuple[Agreement, dict]:
    """Write a model to `out` and a report beside it, if it agrees with the model on real images.

    Args:
        config: with the test set that the images are from.
        checkpoint: anything `read_checkpoint` reads.
        out: the file; the report takes its name with `.json`.
        target: a key of `SUFFIXES`.
        part, logits, fp16: as in `build_graph`.
        images: how many to compare on.
        tolerance: see `TOLERANCES`, the defaults.
        opset: of ONNX.

    Returns:
        The agreement, and the report as written.

    Raises:
        InputError: the model cannot be exported, or its file says something else than the model;
            nothing is left under either name.
    """
    if images < 1:
        raise InputError(f"--images {images}: a file is compared on at least one image")
    precision = "fp16" if fp16 else "fp32"
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    config.pop("inference_dtype", None)  # the model that the file is held against is exact
    predictor = Predictor(config, checkpoint, device="cpu")
    model = predictor.model
    model.requires_grad_(False)
    graph = build_graph(model, part, logits=logits, fp16=fp16)
    metadata = describe(config, predictor.classes, graph, part, precision)
    chosen = Images(config, images)
    with _folder_beside(out) as folder:
        path = folder / out.name
        run = _write(graph, path, target, metadata, opset)
        if part == "backbone":
            agreement = compare(BackboneAgreement(model), chosen, run)
            if agreement.finite:
                file_backbone = FileBackbone(run, graph.preprocessing)
                agreement.scores = score_in_model(model, chosen, file_backbone)
        elif hasattr(model, "decode_head"):
            agreement = compare(SegmentorAgreement(model, logits), chosen, run)
        else:
            agreement = compare(DetectorAgreement(model), chosen, run)
        problem = agreement.problem(tolerance)
        report = dict(
            **metadata,
            file=out.name,
            checkpoint=str(checkpoint),
            tolerance=tolerance,
            **agreement.as_json(),
        )
        if fp16 and not problem and isinstance(model.backbone, ConvNeXt):
            factor, problem = _try_enlarged(graph, chosen, folder, target, opset)
            report["activations_enlarged"] = factor
        if problem:
            raise InputError(
                f"{out}: not written: {problem} (--tolerance {tolerance:g}, "
                f"{agreement.images} images)"
            )
        write_atomically(
            folder / out.with_suffix(".json").name, json.dumps(report, indent=2) + "\n"
        )
        _take_names(folder, out)
    return agreement, report


def describe(
    config: Config, classes: tuple[str, ...], graph: nn.Module, part: str, precision: str
) -> dict:
    """What one has to know to feed the file and to read what it says; kept in it."""
    preprocessing = graph.preprocessing
    steps = config.test_dataloader.dataset.pipeline
    resize = next((step for step in steps if step["type"] == "Resize"), None)
    return dict(
        part=part,
        precision=precision,
        config=Path(config.filename or "config").name,
        input="float32 (N, 3, H, W), 0 to 255, channels in OpenCV's order "
        + ("(BGR)" if preprocessing.swaps else "or as the network was trained"),
        in_the_graph=dict(
            bgr_to_rgb=preprocessing.swaps,
            mean=preprocessing.mean.flatten().tolist(),
            std=preprocessing.std.flatten().tolist(),
            pad_to_multiple_of=preprocessing.divisor,
        ),
        resize=None if resize is None else resize.to_dict(),
        outputs=list(graph.outputs),
        classes=list(classes),
    )


def _write(graph: nn.Module, path: Path, target: str, metadata: dict, opset: int) -> Run:
    """Write the file and open it."""
    program = capture(graph)
    if target == "onnx":
        write_onnx(program, graph, path, metadata, opset)
        return open_onnx(path)
    write_torch(program, path, metadata)
    return open_torch(path)


def _try_enlarged(
    graph: nn.Module, images: Images, folder: Path, target: str, opset: int
) -> tuple[float, str]:
    """Whether the half-precision backbone stays finite with far larger activations.

    Returns:
        The factor, `ENLARGED` or what still lets the activations themselves fit fp16; and what is
        wrong, empty if nothing is.
    """
    backbone = graph.backbone if isinstance(graph, BackboneGraph) else graph.model.backbone
    image = next(iter(images))["inputs"][0][None].float()
    factor = min(ENLARGED, LARGEST / _largest_activation(backbone, graph.preprocessing(image)))
    enlarged = BackboneGraph(graph.preprocessing, enlarge_activations(backbone, factor)).eval()
    path = folder / f"enlarged{SUFFIXES[target]}"
    run = _write(enlarged, path, target, {}, opset)
    if target == "onnx":  # optimised, an operator may be given float32 that the next one rounds
        run = open_onnx(path, optimised=False)
    with torch.inference_mode():
        outputs = [*map(torch.from_numpy, run(image.numpy())), *enlarged(image)]
    for file in folder.glob("enlarged*"):
        file.unlink()
    finite = all(bool(x.isfinite().all()) and bool(x.any()) for x in outputs)
    return factor, "" if finite else f"activations {factor:g} times as large overflow"


@torch.inference_mode()
def _largest_activation(backbone: nn.Module, x: Tensor) -> float:
    """The largest magnitude that any layer of the backbone puts out."""
    largest = [0.0]

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            largest.append(float(output.abs().max()))

    handles = [m.register_forward_hook(note) for m in backbone.modules()]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()
    return max(np.nan_to_num(largest, nan=np.inf).max(), 1e-6)


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A folder for files that are not yet to be found, gone at the end with what is left in it."""
    folder = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        yield folder
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_names(folder: Path, out: Path) -> None:
    """Flush every file and give it its name, the model last: where it is, all of it is."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == out.name):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
        file.replace(out.with_name(file.name))
