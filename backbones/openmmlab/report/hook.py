"""The hook that watches a run and writes `report.json` and `report.html` into its work dir."""

import json
import math
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.evaluation.robustness import read_robustness
from backbones.openmmlab.peak_memory import peak_memory

from .evaluation import DetectionFigures, SegmentationFigures
from .page import render

VERSION = 1
POINTS = 1000  # of a curve, at most
# What a run sets by itself and no experiment is about.
RUNTIME_KEYS = ("launcher", "resume", "work_dir", "load_from", "custom_imports", "visualizer")
LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation",
    "numpy": "numpy", "faster-coco-eval": "faster-coco-eval",
}  # fmt: skip


class Curves:
    """Values by iteration, averaged over as many iterations as keep the number of points small.

    Attributes:
        stride: iterations that a point is the mean of; it doubles when there are too many points.
        steps: the last iteration of each point, counted from 1.
        values: by name, one mean for each point, None where it was not given or not finite.
    """

    def __init__(self, points: int = POINTS):
        self.points = points
        self.stride = 1
        self.steps: list[int] = []
        self.values: dict[str, list[float | None]] = {}
        self._sums: dict[str, list[float]] = {}
        self._pending = 0

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take the values of one iteration."""
        for name, value in values.items():
            self._sums.setdefault(name, []).append(float(value))
        self._pending += 1
        if self._pending < self.stride:
            return
        self.steps.append(step)
        for name in {**self.values, **self._sums}:
            column = self.values.setdefault(name, [None] * (len(self.steps) - 1))
            column.append(_finite_mean(self._sums.get(name, [])))
        self._sums, self._pending = {}, 0
        if len(self.steps) >= self.points:
            self._halve()

    def _halve(self) -> None:
        self.steps = self.steps[1::2]
        for name, column in self.values.items():
            pairs = zip(column[::2], column[1::2], strict=False)
            self.values[name] = [_finite_mean([v for v in pair if v is not None]) for pair in pairs]
        self.stride *= 2

    def state(self) -> dict:
        return dict(stride=self.stride, steps=list(self.steps), values=dict(self.values))

    def restore(self, state: dict, until: int) -> None:
        """Go on from `state`, without what it knows of iterations after `until`."""
        kept = sum(step <= until for step in state["steps"])
        self.stride = state["stride"]
        self.steps = list(state["steps"][:kept])
        self.values = {name: list(column[:kept]) for name, column in state["values"].items()}


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes `report.html`, one file that needs no network, and `report.json` with its figures.

    Both appear whole in the work dir after each evaluation and at the end of training, also of one
    that was interrupted. Curves travel in the checkpoints, so that a resumed run has all of them.

    Args:
        pictures: how many of the worst images are shown beside their ground truth.
    """

    priority = "LOW"

    def __init__(self, pictures: int = 24):
        self.pictures = pictures
        self.curves = Curves()
        self.report: dict[str, Any] = dict(version=VERSION)
        self.rates: dict[str, int] = {}
        self.scores: list[dict] = []
        self.seconds = 0.0
        self._restored: dict | None = None
        self._figures: DetectionFigures | SegmentationFigures | None = None
        self._seen = 0
        self._started: float | None = None
        self._changed = False

    def before_run(self, runner) -> None:
        self.report["run"] = dict(
            name=Path(runner.work_dir).name,
            config=str(runner.cfg.filename or ""),
            folder=os.getcwd(),
            experiment=runner.experiment_name,
        )

    def before_train(self, runner) -> None:
        if self._restored:  # from the checkpoint that is resumed
            self.curves.restore(self._restored["curves"], runner.iter)
            self.seconds = self._restored["seconds"]
            scores = self._restored["scores"]
            earlier = read_earlier(runner.work_dir).get("training", {}).get("scores", [])
            known = {row["step"] for row in scores}
            # Those of an evaluation that came after the checkpoint was saved.
            scores = scores + [row for row in earlier if row["step"] not in known]
            self.scores = [row for row in scores if row["step"] <= runner.iter]
        groups: dict[float, list[int]] = {}
        optimizer = runner.optim_wrapper.optimizer
        for i, group in enumerate(optimizer.param_groups):
            groups.setdefault(group.get("initial_lr", group["lr"]), []).append(i)
        names = [g.get("group_name", f"group {i}") for i, g in enumerate(optimizer.param_groups)]
        for members in groups.values():
            self.rates[_group_name([names[i] for i in members], len(groups))] = members[0]
        self._started = time.monotonic()
        self.report["training"] = dict(
            command=list(sys.argv), batch_size=_batch_size(runner), parameters=_parameters(runner)
        )
        self.report["config"] = describe_config(runner.cfg)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        self._rates_now = {f"lr/{name}": groups[i]["lr"] for name, i in self.rates.items()}

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        # The message hub has brought the losses from the device already.
        hub = runner.message_hub.log_scalars
        names = ["time", "data_time", "grad_norm", *(outputs or {})]
        values = {n: hub[f"train/{n}"].current() for n in names if f"train/{n}" in hub}
        self.curves.add(runner.iter + 1, {**values, **self._rates_now})
        self._changed = True

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["report"] = dict(
            curves=self.curves.state(), scores=self.scores, seconds=self._elapsed()
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._restored = checkpoint.get("report") if runner._resume else None

    def before_val(self, runner) -> None:
        self._begin(runner, runner.val_loop)

    def before_test(self, runner) -> None:
        self._begin(runner, runner.test_loop)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: list | None = None
    ) -> None:
        self._collect(runner.val_dataloader, outputs)

    def after_test_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: list | None = None
    ) -> None:
        self._collect(runner.test_dataloader, outputs)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        step = runner.iter if self._started is not None else None
        if step is not None and metrics:
            figures = _scalars(metrics)
            self.scores = [row for row in self.scores if row["step"] != step]
            self.scores.append(dict(step=step, figures=figures))
        self._conclude(runner, "validation", runner.val_loop, metrics or {}, step)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        self._conclude(runner, "test", runner.test_loop, metrics or {}, None)

    def after_train(self, runner) -> None:
        self.close(runner)

    def close(self, runner) -> None:
        """Write what is new since the last evaluation, also of a run that is interrupted."""
        if self._changed and self._started is not None:
            self.write(runner)

    def write(self, runner) -> None:
        """Write both files aside and rename them; a full disk is said and stops nothing."""
        if not is_main_process():
            return
        earlier = read_earlier(runner.work_dir)
        report = {**self.report, "version": VERSION}
        if self._started is None:  # tools/test.py, perhaps beside the training of the weights
            report["config"] = describe_config(runner.cfg)
            if "evaluation" not in report:  # tools/robustness.py adds to what there is
                report.update(earlier)
            elif earlier.get("run", {}).get("config") == report["run"]["config"]:
                report.update({k: earlier[k] for k in ("training", "config") if k in earlier})
        else:
            report["training"].update(self._training(runner))
        report["environment"] = _environment(runner)
        report["commands"] = commands(runner, report)
        folder = Path(runner.work_dir)
        try:
            report["robustness"] = read_robustness(folder)
        except InputError as error:
            runner.logger.warning(f"left out of the report: {error}")
        report = jsonable(report)
        try:
            write_atomically(folder / "report.json", json.dumps(report, allow_nan=False))
            write_atomically(folder / "report.html", render(report))
        except InputError as error:
            runner.logger.warning(f"no report: {error}")
            return
        self._changed = False
        runner.logger.info(f"report: {folder / 'report.html'}")

    def _elapsed(self) -> float:
        running = time.monotonic() - self._started if self._started is not None else 0.0
        return self.seconds + running

    def _training(self, runner) -> dict:
        times = [t for t in self.curves.values.get("time", []) if t]
        typical = float(np.median(times)) if times else None
        batch = self.report["training"]["batch_size"]
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        return dict(
            curves=self.curves.state(),
            scores=self.scores,
            seconds=self._elapsed(),
            seconds_per_iteration=typical,
            images_per_second=batch / typical if typical and batch else None,
            iterations=runner.iter,
            max_iterations=runner.max_iters,
            epochs=runner.epoch,
            max_epochs=runner.max_epochs if by_epoch else None,
            peak_memory_mib=peak_memory(),
            seed=runner.seed,
            processes=runner.world_size,
        )

    def _begin(self, runner, loop) -> None:
        self._seen = 0
        self._figures = None
        self._began = time.monotonic()
        meta = loop.evaluator.dataset_meta or {}
        classes = meta.get("classes")
        if not classes:
            return
        for metric in loop.evaluator.metrics:
            coco = getattr(metric, "_coco_api", None)
            if coco is not None and not getattr(metric, "format_only", False):
                self._figures = DetectionFigures(classes, coco, self.pictures)
                _record_precision()
                return
            if hasattr(metric, "intersect_and_union") and not metric.format_only:
                self._figures = SegmentationFigures(
                    classes, meta.get("palette"), metric.ignore_index, self.pictures
                )
                return

    def _collect(self, dataloader, samples: list | None) -> None:
        """Count samples, without those that only fill up the last round of several processes."""
        for sample in samples or []:
            place = self._seen * get_world_size() + get_rank()
            self._seen += 1
            if self._figures is not None and place < len(dataloader.dataset):
                self._figures.add(sample)

    def _conclude(self, runner, split: str, loop, metrics: dict, step: int | None) -> None:
        figures, self._figures = self._figures, None
        precision = _recorded_precision()
        if figures is not None:
            states = all_gather_object(figures.state())
            for rank, state in enumerate(states):
                if rank != get_rank():
                    figures.merge(state)
        if not is_main_process():
            return
        dataset = loop.dataloader.dataset
        source = getattr(dataset, "ann_file", "") or getattr(dataset, "data_root", "")
        evaluation = dict(
            split=split,
            step=step,
            checkpoint=str(runner.cfg.get("load_from") or "") if step is None else None,
            data=str(source),
            seconds=time.monotonic() - self._began,
            scores=_scalars(metrics),
        )
        if isinstance(figures, DetectionFigures):
            evaluation.update(figures.figures(precision))
        elif figures is not None:
            evaluation.update(figures.figures())
            for metric in loop.evaluator.metrics:
                for row, value in zip(
                    evaluation["per_class"], getattr(metric, "boundary_iou", None) or (),
                    strict=False,
                ):  # fmt: skip
                    row["boundary IoU"] = value
        self.report["evaluation"] = evaluation
        self.write(runner)


def _record_precision() -> None:
    """Have mmdet's metric keep the precision arrays that it makes its scores of."""
    from faster_coco_eval import COCOeval_faster
    from mmdet.evaluation.metrics import faster_coco_metric

    class RecordingCOCOeval(COCOeval_faster):
        recorded: dict[str, np.ndarray] = {}

        def accumulate(self, *args, **kwargs):
            done = super().accumulate(*args, **kwargs)
            self.recorded[self.params.iouType] = np.asarray(self.eval["precision"])
            return done

    faster_coco_metric.COCOeval_faster = RecordingCOCOeval


def _recorded_precision() -> dict[str, np.ndarray]:
    """The arrays since `_record_precision`; the metric is left as it was."""
    module = sys.modules.get("mmdet.evaluation.metrics.faster_coco_metric")
    recorded = getattr(getattr(module, "COCOeval_faster", None), "recorded", None)
    if recorded is None:
        return {}
    module.COCOeval_faster = module.COCOeval_faster.__base__
    return recorded


def describe_config(config: Config) -> dict:
    """What a config is: its claim, its own lines, what it changes against its bases, all of it."""
    path = Path(config.filename) if config.filename else None
    text = path.read_text() if path and path.is_file() else ""
    resolved = flatten(config._cfg_dict)
    changes = []
    if text:
        bases: dict = {}
        for base in Config._get_base_files(str(path)):
            bases.update(Config.fromfile(str(path.parent / base))._cfg_dict)
        before = flatten(bases)
        for key in sorted({**before, **resolved}):
            if key not in resolved and any(k.startswith(f"{key}.") for k in resolved):
                continue
            if before.get(key) != resolved.get(key):
                changes.append(dict(key=key, base=before.get(key), value=resolved.get(key)))
    lines = [line.strip().strip('"# ') for line in text.splitlines() if line.strip()]
    return dict(
        claim=lines[0] if lines else "",
        text=text,
        has_bases=bool(text) and "_base_" in text,
        changes=changes,
        resolved=resolved,
    )


def flatten(node: Any, path: str = "") -> dict[str, str]:
    """Every leaf of a config by its dotted key, as text; lists of plain values stay whole."""
    nested = isinstance(node, list | tuple) and any(isinstance(x, dict | list) for x in node)
    if isinstance(node, dict) or nested:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        leaves: dict[str, str] = {}
        for key, value in items:
            if path or key not in RUNTIME_KEYS:
                leaves.update(flatten(value, f"{path}.{key}" if path else str(key)))
        return leaves
    if isinstance(node, tuple):  # a list and a tuple of the same values are the same setting
        node = list(node)
    return {path: repr(node)}


def commands(runner, report: dict) -> list[dict]:
    """Shell commands to resume, evaluate and predict, to be run in the run's folder."""
    argv = report.get("training", {}).get("command") or list(sys.argv)
    tools = Path(argv[0]).parent
    if not (tools / "predict.py").is_file() or not runner.cfg.filename:
        return []  # not started by our tools
    config, data, options = _shared(argv, str(runner.cfg.filename))
    work = ["--work-dir", _from_here(runner.work_dir)]
    last = Path(runner.work_dir) / "last_checkpoint"
    checkpoint = last.read_text().strip() if last.is_file() else runner.cfg.get("load_from")
    checkpoint = checkpoint and _from_here(checkpoint)
    processes = report.get("training", {}).get("processes", 1)
    start, launcher = ["python"], []
    if processes > 1:
        start = ["torchrun", "--nproc-per-node", str(processes)]
        launcher = ["--launcher", "pytorch"]
    rows = []
    if "training" in report:
        resume = [*start, str(tools / "train.py"), config, *work, *data, *launcher, "--resume"]
        rows.append(dict(what="Resume or go on training", command=shlex.join(resume + options)))
    if checkpoint:
        test = [*start, str(tools / "test.py"), config, checkpoint, *work, *data, *launcher]
        rows.append(dict(what="Evaluate", command=shlex.join(test + options)))
        robust = ["python", str(tools / "robustness.py"), config, checkpoint, *work, *data]
        rows.append(dict(what="Measure robustness", command=shlex.join([*robust, *options])))
        loader = runner.cfg.get("test_dataloader") or runner.cfg.get("val_dataloader")
        if loader:
            prefix = loader.dataset.get("data_prefix") or {}
            images = prefix.get("img") or prefix.get("img_path") or ""
            folder = Path(loader.dataset.get("data_root") or "") / images
            out = _from_here(Path(runner.work_dir) / "predictions")
            predict = ["python", str(tools / "predict.py"), config, checkpoint, str(folder)]
            rows.append(
                dict(what="Predict", command=shlex.join([*predict, "--out", out, *options]))
            )
    return rows


def _shared(argv: list[str], config: str) -> tuple[str, list[str], list[str]]:
    """Of a tool's arguments: the config, `--data ROOT` and `--cfg-options KEY=VALUE ...`."""
    data, options = [], []
    for i, word in enumerate(argv):
        if word == "--data":
            data = argv[i : i + 2]
        elif word.startswith("--data="):
            data = [word]
        elif word == "--cfg-options":
            rest = argv[i + 1 :]
            end = next((k for k, w in enumerate(rest) if w.startswith("--")), len(rest))
            options = ["--cfg-options", *rest[:end]]
    name = Path(config).name
    given = next((word for word in argv[1:] if Path(word).name == name), _from_here(config))
    return given, data, options


def _from_here(path: str | os.PathLike) -> str:
    """The shorter way to a file of this folder; any other file, and an address, as it is."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_earlier(work_dir: str | os.PathLike) -> dict:
    """The report that is in a work dir already; empty if there is none that can be read."""
    try:
        report = json.loads((Path(work_dir) / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and report.get("version") == VERSION else {}


def jsonable(value: Any) -> Any:
    """The same in what JSON has: numpy's numbers as plain ones, None for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _environment(runner) -> dict[str, str]:
    found = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    found["device"] = (
        torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    )
    if cuda:
        found["CUDA"] = str(torch.version.cuda)
    return found


def _scalars(metrics: dict) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def _finite_mean(values: list[float]) -> float | None:
    values = [v for v in values if math.isfinite(v)]
    return sum(values) / len(values) if values else None


def _group_name(names: list[str], groups: int) -> str:
    """A short name for the parameter groups that share a learning rate."""
    if groups == 1:
        return "all parameters"
    short = [name.replace("_no_decay", "").replace("_decay", "") for name in names]
    unique = list(dict.fromkeys(short))
    text = unique[0] if len(unique) == 1 else f"{unique[0]} to {unique[-1]}"
    return text.replace("_", " ")


def _batch_size(runner) -> int:
    """Images of one iteration, over all processes."""
    loader = runner.cfg.train_dataloader
    size = loader.get("batch_size") or (loader.get("batch_sampler") or {}).get("batch_size") or 0
    return size * runner.world_size


def _parameters(runner) -> int:
    return sum(p.numel() for p in runner.model.parameters())
