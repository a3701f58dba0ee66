"""Export a trained model to a file that is tested on real images before it takes its name."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from backbones.atomic_write import write_atomically
from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.openmmlab.data.band_pipelines import loaded_bands
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import module_at, task_of

from .agreement import (
    Agreement,
    BackboneComparison,
    FileBackbone,
    Images,
    compare,
    score_in_model,
)
from .files import OPSET, TARGETS, Target, capture
from .graphs import BackboneGraph, Preprocessing, build_graph, enlarge_activations

# Largest relative difference, and change of a score, that a file may have from its model.
TOLERANCES = {"fp32": 1e-3, "fp16 weights": 2e-2, "fp16": 2e-2}
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
    """Write a model to `out` with a report beside it, if it agrees with the model on real images.

    Args:
        config: config whose test set the images are from.
        checkpoint: anything `read_checkpoint` reads.
        out: the file; the report takes its name with `.json`.
        target: a key of `TARGETS`.
        part, logits, fp16: as in `build_graph`.
        images: how many to compare on.
        tolerance: see `TOLERANCES`, the defaults.
        opset: opset version of ONNX.

    Returns:
        The agreement, and the report as written.

    Raises:
        InputError: the model cannot be exported, or its file's outputs are beyond the tolerance;
            nothing is left under either name.
    """
    if images < 1:
        raise InputError(
            f"--images {images}: a file is compared on at least one image",
            code="bad-argument",
            where="--images",
        )
    kind = TARGETS[target]
    precision = "fp16" if fp16 else "fp16 weights" if kind.half_weights else "fp32"
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    config.pop("inference_dtype", None)  # the model that the file is compared with is exact
    predictor = Predictor(config, checkpoint, device="cpu")
    model = predictor.model
    model.requires_grad_(False)
    graph = build_graph(model, part, logits=logits, fp16=fp16)
    metadata = describe(predictor, graph, part, precision)
    chosen = Images(config, images)
    with folder_beside(out) as folder:
        path = folder / out.name
        if kind.prepare and not fp16:
            kind.prepare(graph)
        kind.write(capture(graph), path, metadata, opset)
        run = kind.open(path)
        if part == "backbone":
            (agreement,) = compare(BackboneComparison(model), chosen, [run])
            if agreement.finite:
                file_backbone = FileBackbone(run, graph.preprocessing)
                agreement.scores = score_in_model(model, chosen, file_backbone)
        else:
            exported = chosen.task.export
            assert exported is not None  # or there were no graph
            (agreement,) = compare(exported.comparison(model, logits), chosen, [run])
        problem = agreement.problem(tolerance)
        report = dict(
            **metadata,
            file=out.name,
            checkpoint=str(checkpoint),
            tolerance=tolerance,
            **agreement.as_json(),
        )
        if fp16 and not problem and isinstance(module_at(model, chosen.task.backbone), ConvNeXt):
            factor, problem = _try_enlarged(graph, chosen, folder, kind, opset)
            report["activations_enlarged"] = factor
        if problem:
            raise InputError(
                f"{out}: not written: {problem} (--tolerance {tolerance:g}, "
                f"{agreement.images} images)",
                code="unsupported",
                where=out,
            )
        write_atomically(
            folder / out.with_suffix(".json").name, json.dumps(report, indent=2) + "\n"
        )
        take_names(folder, out)
    return agreement, report


def describe(predictor: Predictor, graph: Any, part: str, precision: str) -> dict:
    """Describe a file for its metadata: its input, its outputs and what `ExportedModel` needs."""
    config, preprocessing = predictor.config, graph.preprocessing
    exported = task_of(config).export
    assert exported is not None  # or there were no graph
    steps = config.test_dataloader.dataset.pipeline
    palette = predictor.palette
    resize = next((step for step in steps if step["type"] == "Resize"), None)
    return dict(
        part=part,
        precision=precision,
        config=Path(config.filename or "config").name,
        input=_input(preprocessing, loaded_bands(steps)),
        in_the_graph=dict(
            bgr_to_rgb=preprocessing.swaps,
            mean=preprocessing.mean.flatten().tolist(),
            std=preprocessing.std.flatten().tolist(),
            pad_to_multiple_of=preprocessing.divisor,
        ),
        resize=None if resize is None else resize.to_dict(),
        outputs=list(graph.outputs),
        classes=list(predictor.classes),
        palette=None if palette is None else palette.tolist(),
        scope=task_of(config).scope,
        pipeline=predictor.steps,
        postprocessing={} if part == "backbone" else exported.settings(predictor.model),
    )


def _input(preprocessing: Preprocessing, bands: Bands | None) -> str:
    if not (preprocessing.normalises or preprocessing.swaps):  # a classifier's
        return f"float32 (N, {preprocessing.channels}, H, W) as the test pipeline makes it"
    if bands is not None:
        return f"float32 (N, {len(bands.chosen)}, H, W), bands {', '.join(bands.chosen)} as stored"
    order = "(BGR)" if preprocessing.swaps else "or as the network was trained"
    return f"float32 (N, 3, H, W), 0 to 255, channels in OpenCV's order {order}"


def _try_enlarged(
    graph: Any, images: Images, folder: Path, target: Target, opset: int
) -> tuple[float, str]:
    """Test whether the half-precision backbone stays finite with far larger activations.

    Returns:
        The factor, `ENLARGED` or what still lets the activations themselves fit fp16; and what is
        wrong, empty if nothing is.
    """
    whole = not isinstance(graph, BackboneGraph)
    backbone: Any = module_at(graph.model, images.task.backbone) if whole else graph.backbone
    image = next(iter(images))["inputs"][0][None].float()
    factor = min(ENLARGED, LARGEST / _largest_activation(backbone, graph.preprocessing(image)))
    enlarged = BackboneGraph(graph.preprocessing, enlarge_activations(backbone, factor)).eval()
    path = folder / f"enlarged{target.suffix}"
    target.write(capture(enlarged), path, {}, opset)
    # Optimised, an operator may be given float32 that the next one rounds.
    run = target.open_unoptimised(path)
    with torch.inference_mode():
        outputs = [*map(torch.from_numpy, run(image.numpy())), *enlarged(image)]
    for file in folder.glob("enlarged*"):
        file.unlink()
    finite = all(bool(x.isfinite().all()) and bool(x.any()) for x in outputs)
    return factor, "" if finite else f"activations {factor:g} times as large overflow"


@torch.inference_mode()
def _largest_activation(backbone: nn.Module, x: Tensor) -> float:
    """Return the largest magnitude of any layer's output."""
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
def folder_beside(out: Path) -> Iterator[Path]:
    """Create a folder for unfinished files; remove it with its contents at the end."""
    folder = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        yield folder
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error})", code="write-failed", where=out
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take_names(folder: Path, out: Path) -> None:
    """Flush every file and rename it, the model last, so that it never exists alone."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == out.name):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
        file.replace(out.with_name(file.name))
