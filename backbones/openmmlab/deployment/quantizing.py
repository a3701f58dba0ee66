"""Quantise an exported file to INT8 as far as its scores allow, where that makes it faster."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.export.agreement import Images
from backbones.openmmlab.export.exporting import folder_beside, take_names
from backbones.openmmlab.export.tensorrt import check_for_tensorrt
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import Task

from .comparing import check_classes, largest_drop, machine, scores_of, size_of, timed_images
from .onnx_int8 import OnnxQuantizer
from .openvino_int8 import OpenvinoQuantizer
from .timing import TimedModel, Timing, time_in_turns

QUANTIZERS = {".onnx": OnnxQuantizer, ".xml": OpenvinoQuantizer}
PROBED = 4  # calibration images that the layers' sensitivity is measured on


@dataclass(frozen=True)
class Attempt:
    """Hold the scores of a file in which some layers stay float.

    Attributes:
        floats: how many of the most sensitive layers stay float.
        scores: the task's main metrics.
        drop: the largest loss of one of them, on a scale of 1.
    """

    floats: int
    scores: Mapping[str, float]
    drop: float


def quantize(
    config: Config,
    path: Path,
    out: Path,
    *,
    max_drop: float = 0.005,
    calibration: int = 64,
    images: int | None = None,
    rounds: int = 10,
    threads: int | None = None,
    keep_slower: bool = False,
    tensorrt: bool = False,
) -> dict:
    """Write an INT8 file beside a report, `out` with the suffix `.json`.

    Activations are calibrated on training images, scores are measured on test images. Layers are
    returned to float, the most sensitive first, until no score has lost more than `max_drop`.

    Args:
        config: prepared config whose data sets the images are from.
        path: ONNX or OpenVINO's file of a whole model in float32.
        out: the INT8 file.
        max_drop: largest loss of a main metric, on a scale of 1.
        calibration: number of training images.
        images: number of test images; None for all.
        rounds: timed rounds of each file.
        threads: threads of the runtime; None takes PyTorch's number.
        keep_slower: write the file for another machine where it is not faster on this one.
        tensorrt: write an ONNX file by TensorRT's rules, which is not timed here.

    Returns:
        The report as written.

    Raises:
        InputError: there are no training images, the float file finds nothing that could be lost,
            no INT8 file is exact enough, it is not faster, or TensorRT would refuse it; nothing is
            left under either name.
    """
    for name, number in (("--calibration", calibration), ("--images", images or 1)):
        if number < 1:
            raise InputError(f"{name} {number}: give at least 1", where=name)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    predictor = Predictor(path, device="cpu")
    _check_precision(predictor, path)
    chosen = Images(config, images)
    check_classes(predictor, chosen, path)
    inputs = [
        predictor.packed(image)["inputs"][None].float().numpy()
        for image in training_images(config, calibration)
    ]
    exact = scores_of(predictor, chosen)
    task = chosen.task
    if not exact or not all(value > 0 for value in exact.values()):
        raise InputError(
            f"{path}: scores {_shown(exact, task)} on {len(chosen.indices)} test images: there is "
            "nothing that INT8 could lose",
            code="no-data",
            where=path,
        )
    with folder_beside(out) as folder:
        assert task.export is not None  # or there were no file
        rules = dict(tensorrt=True) if tensorrt else {}
        quantizer = QUANTIZERS[path.suffix](path, task.export.float_layers, task.backbone, **rules)
        if not quantizer.layers:
            raise InputError(
                f"{path}: has no layer that can become INT8: no linear, and no dense convolution "
                "outside the backbone",
                code="unsupported",
                where=path,
            )
        quantizer.calibrate(inputs, folder)
        sensitivity = quantizer.sensitivities(inputs[:PROBED])
        order = sorted(quantizer.layers, key=lambda layer: -sensitivity[layer])
        for file in folder.iterdir():
            file.unlink()
        attempts: list[Attempt] = []

        def drop_of(floats: int) -> float:
            quantizer.write(order[floats:], folder / out.name, dict(precision="int8"))
            scores = scores_of(Predictor(folder / out.name, device="cpu"), chosen)
            attempts.append(Attempt(floats, scores, largest_drop(task, exact, scores)))
            print_log(
                f"{len(order) - floats} of {len(order)} layers in INT8: {_shown(scores, task)}, "
                f"float {_shown(exact, task)}",
                "current",
            )
            return attempts[-1].drop

        floats = fewest_floats(len(order), drop_of, max_drop)
        if floats is None:
            best = min(attempts, key=lambda attempt: attempt.drop)
            raise InputError(
                f"{out}: not written: with {len(order) - best.floats} of {len(order)} layers in "
                f"INT8 it scores {_shown(best.scores, task)}, the float file "
                f"{_shown(exact, task)} (--max-drop {max_drop:g})",
                code="unsupported",
                where=out,
            )
        quantizer.write(order[floats:], folder / out.name, dict(precision="int8"))
        timings = []
        if tensorrt:
            check_for_tensorrt(folder / out.name)
        else:
            timings = time_in_turns(
                [TimedModel(str(path), path), TimedModel(str(out), folder / out.name)],
                timed_images(chosen),
                rounds,
                threads,
            )
            if not keep_slower:
                check_faster(out, *timings)
        (attempt,) = (attempt for attempt in attempts if attempt.floats == floats)
        report = dict(
            file=out.name,
            float_file=str(path),
            machine=machine(threads),
            calibration_images=len(inputs),
            images=len(chosen.indices),
            max_drop=max_drop,
            scores={name: dict(float=exact[name], int8=attempt.scores[name]) for name in exact},
            drop=attempt.drop,
            median_ms=_by_file([timing.quartiles()[1] * 1e3 for timing in timings]),
            seconds=_by_file([timing.seconds for timing in timings]),
            peak_memory_mib=_by_file([timing.memory_mib for timing in timings]),
            size_mib=_by_file([size_of(path), size_of(folder / out.name)]),
            weights_bits=7 if quantizer.narrow else 8,
            attempts=[dict(int8_layers=len(order) - a.floats, drop=a.drop) for a in attempts],
            layers=[
                dict(
                    name=layer.name,
                    kind=layer.kind,
                    sensitivity=sensitivity[layer],
                    precision="fp32" if i < floats else "int8",
                )
                for i, layer in enumerate(order)
            ],
        )
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        write_atomically(folder / out.with_suffix(".json").name, text)
        take_names(folder, out)
    return report


def fewest_floats(count: int, drop_of: Callable[[int], float], max_drop: float) -> int | None:
    """Return how many of the most sensitive layers have to stay float, found by bisection.

    Args:
        count: number of layers.
        drop_of: returns the loss where so many of them stay float.
        max_drop: the largest loss that is accepted.

    Returns:
        A number whose loss has been measured and accepted; None if only all layers in float do.
    """
    if drop_of(0) <= max_drop:
        return 0
    fails, holds = 0, count
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if drop_of(middle) <= max_drop:
            holds = middle
        else:
            fails = middle
    return holds if holds < count else None


def check_faster(out: Path, exact: Timing, quantized: Timing) -> None:
    """Refuse an INT8 file whose median time is not below the float file's.

    Raises:
        InputError: it is not.
    """
    before, after = exact.quartiles()[1], quantized.quartiles()[1]
    if after >= before:
        raise InputError(
            f"{out}: not written: INT8 takes {after * 1e3:.1f} ms on this machine, float "
            f"{before * 1e3:.1f} ms; --keep-slower writes it for another machine",
            code="unsupported",
            where=out,
        )


def training_images(config: Config, count: int) -> list[str]:
    """Return paths of images spread evenly over the training set.

    Raises:
        InputError: the config has none.
    """
    dataset = (config.get("train_dataloader") or {}).get("dataset")
    while dataset is not None and "dataset" in dataset:  # one that repeats or mixes another
        dataset = dataset.dataset
    built = None
    if dataset is not None:
        built = DATASETS.build(dict(dataset, _scope_=config.default_scope))
    if built is None or not len(built):
        raise InputError(
            f"{config.filename}: train_dataloader.dataset has no images to calibrate INT8 on",
            code="no-data",
            where=config.filename,
        )
    chosen = np.linspace(0, len(built) - 1, min(count, len(built))).round().astype(int)
    return [built.get_data_info(i)["img_path"] for i in sorted(set(chosen.tolist()))]


def report_lines(report: Mapping, task: Task) -> Iterator[str]:
    """Yield a report's lines: sensitivity of each layer, scores, speed, memory and size."""
    yield "relative loss of each layer's output in INT8, by itself:"
    for layer in report["layers"]:
        yield f"  {layer['precision']}  {layer['sensitivity']:.4f}  {layer['name']}"
    for name, values in report["scores"].items():
        metric = task.metric(name)
        change = values["int8"] - values["float"]
        yield (
            f"{metric.name if metric else name}: float {values['float']:.4g}, "
            f"INT8 {values['int8']:.4g}, change {change:+.4g}"
        )
    for title, key, unit in (
        ("time per image", "median_ms", "ms"),
        ("memory", "peak_memory_mib", "MiB"),
        ("size", "size_mib", "MiB"),
    ):
        if (values := report[key]) is not None:
            yield f"{title}: float {values['float']:.4g} {unit}, INT8 {values['int8']:.4g}"


def _check_precision(predictor: Predictor, path: Path) -> None:
    if predictor.model.precision not in ("fp32", "fp16 weights"):
        raise InputError(
            f"{path}: is {predictor.model.precision}; INT8 is made from a file in float32",
            code="unsupported",
            where=path,
        )


def _by_file(values: Sequence[Any]) -> dict[str, Any] | None:
    """Return figures of the float and the INT8 file; None where there are none."""
    if not values:
        return None
    exact, quantized = (value if value == value else None for value in values)
    return dict(float=exact, int8=quantized)


def _shown(scores: Mapping[str, float], task: Task) -> str:
    named = ((task.metric(name), name, value) for name, value in scores.items())
    return ", ".join(f"{m.name if m else name} {value:.4g}" for m, name, value in named)
