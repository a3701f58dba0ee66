"""Watch a run and write `report.json` and `report.html` into its work dir."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.evaluation.figures import Figures
from backbones.openmmlab.evaluation.robustness import read_robustness
from backbones.openmmlab.peak_memory import peak_memory
from backbones.openmmlab.tasks import task_of

from .curves import Curves
from .experiment import commands, describe_config, environment
from .page import render
from .saved import FILE, VERSION, jsonable, read_earlier


@HOOKS.register_module()
class ReportHook(Hook):
    """Write `report.html`, a single file that needs no network, and `report.json` with its figures.

    Both are written atomically into the work dir after each evaluation and at the end of training,
    also of an interrupted one. Curves are stored in the checkpoints, so that a resumed run has all
    of them.

    Args:
        pictures: how many of the worst images are shown beside their ground truth.
    """

    priority = "LOW"

    def __init__(self, pictures: int = 24):
        self.pictures = pictures
        self.curves = Curves()
        self.report: dict[str, Any] = dict(version=VERSION)
        self.rates: dict[str, int] = {}  # parameter group by the name of its curve
        self.scores: list[dict] = []
        self.seconds = 0.0  # of training before it was resumed
        self._rates_now: dict[str, float] = {}
        self._restored: dict | None = None
        self._figures: Figures | None = None
        self._seen = 0
        self._began = 0.0
        self._started: float | None = None
        self._changed = False

    def before_run(self, runner) -> None:
        """Record the task, the metrics and the run's identity."""
        task = task_of(runner.cfg)
        self.report["task"] = task.name
        self.report["metrics"] = [asdict(metric) for metric in task.metrics]
        self.report["layout"] = asdict(task.report_layout)
        self.report["run"] = dict(
            name=Path(runner.work_dir).name,
            config=str(runner.cfg.filename or ""),
            folder=os.getcwd(),
            experiment=runner.experiment_name,
        )

    def before_train(self, runner) -> None:
        """Continue the curves of a resumed run; name the learning rates' curves."""
        if self._restored and runner.iter:  # of the checkpoint that is resumed
            self.curves.restore(self._restored["curves"], runner.iter)
            self.seconds = self._restored["seconds"]
            scores = self._restored["scores"]
            earlier = read_earlier(runner.work_dir).get("training", {}).get("scores", [])
            known = {row["step"] for row in scores}
            # Those of an evaluation that came after the checkpoint was saved.
            scores = scores + [row for row in earlier if row["step"] not in known]
            self.scores = [row for row in scores if row["step"] <= runner.iter]
        self.rates = _rate_names(runner.optim_wrapper.optimizer.param_groups)
        self._started = time.monotonic()
        self.report["training"] = dict(
            command=list(sys.argv),
            batch_size=_images_per_iteration(runner),
            parameters=sum(p.numel() for p in runner.model.parameters()),
        )
        self.report["config"] = describe_config(runner.cfg)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record the learning rates: schedulers change them before the iteration has ended."""
        groups = runner.optim_wrapper.optimizer.param_groups
        self._rates_now = {f"lr/{name}": groups[i]["lr"] for name, i in self.rates.items()}

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Add losses, times and learning rates to the curves."""
        # The message hub has brought the losses from the device already.
        hub = runner.message_hub.log_scalars
        names = ["time", "data_time", "grad_norm", *(outputs or {})]
        values = {n: hub[f"train/{n}"].current() for n in names if f"train/{n}" in hub}
        self.curves.add(runner.iter + 1, {**values, **self._rates_now})
        self._changed = True

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put the curves into the checkpoint."""
        checkpoint["report"] = dict(
            curves=self.curves.state(), scores=self.scores, seconds=self._elapsed()
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the curves of the checkpoint, in case training is resumed from it."""
        self._restored = checkpoint.get("report")

    def before_val(self, runner) -> None:
        """Prepare to collect a validation's figures."""
        self._begin(runner, runner.val_loop)

    def before_test(self, runner) -> None:
        """Prepare to collect a test's figures."""
        self._begin(runner, runner.test_loop)

    def after_val_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Add a batch to the figures."""
        self._collect(runner.val_dataloader, outputs)

    def after_test_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Add a batch to the figures."""
        self._collect(runner.test_dataloader, outputs)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Add the scores to their curves; write the report."""
        step = runner.iter if self._started is not None else None
        if step is not None and metrics:
            figures = _scalars(metrics)
            self.scores = [row for row in self.scores if row["step"] != step]
            self.scores.append(dict(step=step, figures=figures))
        self._conclude(runner, "validation", runner.val_loop, metrics or {}, step)

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Write the report."""
        self._conclude(runner, "test", runner.test_loop, metrics or {}, None)

    def after_train(self, runner) -> None:
        """Write what is new since the last evaluation."""
        self.close(runner)

    def close(self, runner) -> None:
        """Write what is new since the last evaluation, also after an interruption."""
        if self._changed and self._started is not None:
            self.write(runner)

    def write(self, runner) -> None:
        """Write both files atomically; on a full disk, log a warning and continue."""
        if not is_main_process():
            return
        earlier = read_earlier(runner.work_dir)
        report = {**self.report, "version": VERSION}
        if self._started is None:  # tools/test.py, perhaps beside the training of the weights
            report["config"] = describe_config(runner.cfg)
            if "evaluation" not in report:  # tools/robustness.py adds to an existing report
                current = {key: report[key] for key in ("metrics", "layout")}
                report = {**report, **earlier, **current}
            elif earlier.get("run", {}).get("config") == report["run"]["config"]:
                report.update({k: earlier[k] for k in ("training", "config") if k in earlier})
        else:
            report["training"].update(self._training(runner))
        report["environment"] = environment()
        report["commands"] = commands(runner, report)
        folder = Path(runner.work_dir)
        try:
            report["robustness"] = read_robustness(folder)
        except InputError as error:
            runner.logger.warning(f"left out of the report: {error}")
        report = jsonable(report)
        try:
            write_atomically(folder / FILE, json.dumps(report, allow_nan=False))
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

    def _begin(self, runner, loop: Any) -> None:
        self._seen = 0
        self._figures = None
        self._began = time.monotonic()
        figures = task_of(runner.cfg).figures
        if figures is not None:
            meta = loop.evaluator.dataset_meta or {}
            self._figures = figures(loop.evaluator.metrics, meta, self.pictures)

    def _collect(self, dataloader: Any, samples: Sequence | None) -> None:
        """Count samples, without those that only pad the last round of several ranks."""
        for sample in samples or []:
            place = self._seen * get_world_size() + get_rank()
            self._seen += 1
            if self._figures is not None and place < len(dataloader.dataset):
                self._figures.add(sample)

    def _conclude(
        self,
        runner,
        split: str,
        loop: Any,
        metrics: Mapping[str, float],
        step: int | None,
    ) -> None:
        figures, self._figures = self._figures, None
        if figures is not None:
            states = all_gather_object(figures.state())
            for rank, state in enumerate(states):
                if rank != get_rank():
                    figures.merge(state)
        if not is_main_process():
            return
        dataset = loop.dataloader.dataset
        source = getattr(dataset, "ann_file", "") or getattr(dataset, "data_root", "")
        self.report["evaluation"] = dict(
            split=split,
            step=step,
            checkpoint=str(runner.cfg.get("load_from") or "") if step is None else None,
            data=str(source),
            seconds=time.monotonic() - self._began,
            scores=_scalars(metrics),
            **(figures.to_dict() if figures is not None else {}),
        )
        self.write(runner)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def _rate_names(groups: Sequence[Mapping]) -> dict[str, int]:
    """Name the parameter groups by learning rate; return the first group of each rate."""
    members: dict[float, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group.get("initial_lr", group["lr"]), []).append(i)
    if len(members) == 1:
        return {"all parameters": 0}
    rates = {}
    for places in members.values():
        names = [str(groups[i].get("group_name", f"group {i}")) for i in places]
        short = [name.replace("_no_decay", "").replace("_decay", "") for name in names]
        unique = list(dict.fromkeys(short))
        name = unique[0] if len(unique) == 1 else f"{unique[0]} to {unique[-1]}"
        rates[name.replace("_", " ")] = places[0]
    return rates


def _images_per_iteration(runner) -> int:
    loader = runner.cfg.train_dataloader
    size = loader.get("batch_size") or (loader.get("batch_sampler") or {}).get("batch_size") or 0
    return size * runner.world_size
