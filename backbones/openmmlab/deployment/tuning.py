"""Measure a model's scores against its time over the settings that trade one for the other."""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from rich.table import Table

from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError
from backbones.openmmlab.config.overrides import apply_overrides
from backbones.openmmlab.export.agreement import Images
from backbones.openmmlab.export.exporting import export
from backbones.openmmlab.export.files import TARGETS
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import Knobs, Metric, Task, task_of
from backbones.ops.processor import computes_natively
from backbones.weights import trusted

from .comparing import largest_drop, scores_of, timed_images
from .timing import TimedModel, Timing, time_in_turns

SIZES = (0.75, 0.5)  # of the sides that the config resizes to
PYTORCH = "PyTorch"
TARGET_OF = {"onnxruntime": "onnx", "OpenVINO": "openvino"}  # the exported files that they run


@dataclass
class Point:
    """Hold one combination of settings and what was measured of it.

    Attributes:
        settings: the setting of each knob, by name.
        overrides: the dotted keys of the config that it stands for.
        scores: the task's main metrics.
        timing: its speed and memory.
        front: whether no other point is both as fast and as good.
    """

    settings: dict[str, str]
    overrides: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    front: bool = False

    @property
    def milliseconds(self) -> float:
        """Return the median time of an image."""
        return self.timing.quartiles()[1] * 1e3

    def as_json(self) -> dict:
        """Return the figures as plain data."""
        return dict(
            settings=self.settings,
            scores=self.scores,
            median_ms=self.milliseconds,
            seconds=self.timing.seconds,
            front=self.front,
        )


def knobs_of(config: Config) -> Knobs:
    """Return what a config's predictions can trade accuracy for time with.

    The first setting of each is the config's own.
    """
    knobs = dict(task_of(config).latency_knobs(config))
    steps = config.test_dataloader.dataset.pipeline
    resizes = [i for i, step in enumerate(steps) if step["type"].rpartition(".")[2] == "Resize"]
    if len(resizes) == 1 and steps[resizes[0]].get("scale"):
        key, scale = f"test_dataloader.dataset.pipeline.{resizes[0]}.scale", steps[resizes[0]].scale
        scales = [tuple(int(side * factor) for side in scale) for factor in (1, *SIZES)]
        knobs["size"] = {f"{scale[0]}x{scale[1]}": {key: scale} for scale in scales}
    own = config.get("inference_dtype", "float32")
    dtypes = [own] + ["bfloat16"] * (own != "bfloat16" and computes_natively(torch.bfloat16))
    knobs["dtype"] = {dtype: {"inference_dtype": dtype} for dtype in dtypes}
    if task_of(config).export is not None:
        installed = [r for r, t in TARGET_OF.items() if all(map(find_spec, TARGETS[t].packages))]
        knobs["runtime"] = dict.fromkeys((PYTORCH, *installed), {})
    return knobs


def points_of(knobs: Knobs) -> list[Point]:
    """Return every combination of the knobs' settings, the config's own first."""
    points = []
    for chosen in product(*(settings.items() for settings in knobs.values())):
        overrides = {key: value for _, keys in chosen for key, value in keys.items()}
        names = dict(zip(knobs, (name for name, _ in chosen), strict=True))
        points.append(Point(names, overrides))
    return points


def tune(
    config: Config,
    checkpoint: str,
    *,
    vary: Sequence[str] | None = None,
    images: int = 100,
    rounds: int = 6,
    threads: int | None = None,
    trust: bool = False,
) -> list[Point]:
    """Measure the scores and the time of every combination, and mark the front.

    Args:
        config: prepared config of the model.
        checkpoint: its weights.
        vary: the knobs to vary; None for all.
        images: number of test images for the scores.
        rounds: timed rounds of each point.
        threads: threads of each runtime; None takes PyTorch's number.
        trust: whether the checkpoint may run code.

    Raises:
        InputError: there is no such knob, or a setting cannot predict an image.
    """
    for name, number in (("--images", images), ("--rounds", rounds), ("--threads", threads or 1)):
        if number < 1:
            raise InputError(f"{name} {number}: give at least 1", where=name)
    knobs = knobs_of(config)
    if unknown := [name for name in vary or () if name not in knobs]:
        raise InputError(
            f"--vary {unknown[0]}: this config has {', '.join(knobs)}",
            code="unknown-name",
            where="--vary",
        )
    combined = points_of({k: knobs[k] for k in knobs if vary is None or k in vary})
    points = [point for point in combined if _can_run(point, config)]
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    models, paths = [], []
    with TemporaryDirectory() as folder:
        for i, point in enumerate(points, 1):
            changed = with_settings(config, point)
            with trusted() if trust else nullcontext():
                model = _model_of(point, changed, checkpoint, Path(folder) / str(i))
                given = None if isinstance(model, Path) else checkpoint
                predictor = Predictor(model, given, device="cpu")
            chosen = Images(changed, images)
            point.scores, paths = scores_of(predictor, chosen), timed_images(chosen)
            models.append(TimedModel(_named(point), model, given, trust))
            print_log(f"{i} of {len(points)}: {_named(point)}: {point.scores}", "current")
        timings = time_in_turns(models, paths, rounds, threads)
    for point, timing in zip(points, timings, strict=True):
        point.timing = timing
    mark_front(points, _judged(task_of(config), points[0]))
    return points


def _model_of(point: Point, config: Config, checkpoint: str, folder: Path) -> Path | Config:
    """Return the config of a point, or a file of it where another runtime is to run it."""
    target = TARGET_OF.get(point.settings.get("runtime", ""))
    if target is None:
        return config
    task = task_of(config)
    out = folder / f"model{TARGETS[target].suffix}"
    logits = task.export is not None and task.export.has_logits
    export(deepcopy(config), checkpoint, out, target, logits=logits, images=1)
    return out


def _can_run(point: Point, config: Config) -> bool:
    """Return whether a runtime runs the settings: files are float32 and see the whole image."""
    if point.settings.get("runtime", PYTORCH) == PYTORCH:
        return True
    changed = with_settings(config, point)
    slides = (changed.model.get("test_cfg") or {}).get("mode") == "slide"
    return not slides and changed.get("inference_dtype", "float32") == "float32"


def with_settings(config: Config, point: Point) -> Config:
    """Return a copy of a config with a point's settings."""
    changed = deepcopy(config)
    apply_overrides(changed, point.overrides)
    return changed


def mark_front(points: Sequence[Point], metric: Metric) -> None:
    """Mark the points of which no other is at least as fast and as good, and better in one."""
    for point in points:
        own = (point.milliseconds, -point.scores[metric.key])
        others = [(other.milliseconds, -other.scores[metric.key]) for other in points]
        point.front = not any(
            ms <= own[0] and loss <= own[1] and (ms, loss) != own for ms, loss in others
        )


def choose(points: Sequence[Point], task: Task, max_drop: float) -> Point:
    """Return the fastest point whose main metrics lose at most `max_drop` to the first point's.

    Args:
        points: what `tune` returned, the config's own settings first.
        task: the task whose metrics the scores are.
        max_drop: largest loss, on a scale of 1.
    """
    kept = [
        point for point in points if largest_drop(task, points[0].scores, point.scores) <= max_drop
    ]
    return min(kept or points[:1], key=lambda point: point.milliseconds)


def write_config(config: Config, point: Point, path: Path) -> None:
    """Write a config with a point's settings; its first line says what was measured."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in point.scores.items())
    text = with_settings(config, point).pretty_text
    write_atomically(path, f'"""{_named(point)}: {scores}, {point.milliseconds:.1f} ms."""\n{text}')


def table(points: Sequence[Point], task: Task) -> Table:
    """Return the points as a table for a terminal, the fastest first."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    metrics = [metric for metric in task.main_metrics if metric.key in points[0].scores]
    columns = [*points[0].settings, "ms per image", *(metric.name for metric in metrics), "front"]
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for point in sorted(points, key=lambda point: point.milliseconds):
        made.add_row(
            *point.settings.values(),
            f"{point.milliseconds:.1f}",
            *(f"{point.scores[metric.key]:.4g}" for metric in metrics),
            "*" if point.front else "",
            style="bold" if point.front else None,
        )
    return made


def plot(points: Sequence[Point], task: Task, path: Path) -> None:
    """Draw the main metric against the time, and a line through the front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = _judged(task, points[0])
    figure, axes = plt.subplots(figsize=(8, 5))
    front = sorted((p for p in points if p.front), key=lambda point: point.milliseconds)
    rest = [point for point in points if not point.front]
    for chosen, colour in ((rest, "#c4c4c4"), (front, "#2a78b5")):
        x = [point.milliseconds for point in chosen]
        axes.scatter(x, [point.scores[metric.key] for point in chosen], color=colour, zorder=3)
    line = [(point.milliseconds, point.scores[metric.key]) for point in front]
    axes.step(*zip(*line, strict=True), where="post", color="#2a78b5", linewidth=1)
    for point in front:
        axes.annotate(
            ", ".join(point.settings.values()),
            (point.milliseconds, point.scores[metric.key]),
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel("ms per image")
    axes.set_ylabel(metric.name)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=150)
    plt.close(figure)


def _judged(task: Task, point: Point) -> Metric:
    """Return the first main metric that was measured."""
    return next(metric for metric in task.main_metrics if metric.key in point.scores)


def _named(point: Point) -> str:
    return ", ".join(f"{knob} {name}" for knob, name in point.settings.items())
