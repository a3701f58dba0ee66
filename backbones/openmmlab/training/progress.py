"""Show the progress of a run: a terminal bar, and peak memory in every log line."""

import datetime
import logging
import re
import sys
import time
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOG_PROCESSORS
from mmengine.runner import LogProcessor
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from backbones.openmmlab.peak_memory import peak_memory
from backbones.openmmlab.tasks import task_of

SECONDS = 0.2  # between two drawings
WINDOW = 20  # iterations that speed and loss are the mean of


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show progress, time left, images/s, peak memory, loss and the last scores in a terminal.

    In a file or a pipe the log's lines are unchanged. In a terminal the lines
    of iterations, which the bar makes needless, go to the log file alone; all others stay above it.
    """

    priority = "LOW"

    def __init__(self):
        self._bar: Progress | None = None
        self._streams: list[logging.StreamHandler] = []
        self._tasks: dict[str, TaskID] = {}
        self._scores = ""
        self._drawn = 0.0

    def before_train(self, runner) -> None:
        self._begin(runner, "train", runner.max_iters, runner.iter)

    def before_val(self, runner) -> None:
        self._begin(runner, "validate", len(runner.val_dataloader))

    def before_test(self, runner) -> None:
        self._begin(runner, "test", len(runner.test_dataloader))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        hub = runner.message_hub.log_scalars
        loss = hub["train/loss"].mean(WINDOW) if "train/loss" in hub else None
        images = len(data_batch["inputs"]) * runner.world_size
        self._draw(runner, "train", runner.iter + 1, images, loss)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: list | None = None
    ) -> None:
        self._draw(runner, "validate", batch_idx + 1, len(outputs or []) * runner.world_size)

    def after_test_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: list | None = None
    ) -> None:
        self._draw(runner, "test", batch_idx + 1, len(outputs or []) * runner.world_size)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        given = metrics or {}
        main = [metric for metric in task_of(runner.cfg).main_metrics if metric.key in given]
        self._scores = "  ".join(f"{metric.name} {given[metric.key]:.4g}" for metric in main)

    def after_val(self, runner) -> None:
        if self._bar is not None and "train" in self._tasks:
            self._bar.remove_task(self._tasks.pop("validate"))

    def close(self, runner) -> None:
        """Restore the terminal, with the bar's last state in it."""
        if self._bar is None:
            return
        self._bar.stop()
        for handler in self._streams:
            handler.setStream(sys.stdout)
            handler.removeFilter(_is_not_in_the_bar)
        self._bar, self._streams, self._tasks = None, [], {}

    def _begin(self, runner, what: str, total: int, completed: int = 0) -> None:
        if self._bar is None:
            console = Console()
            if not is_main_process() or not console.is_terminal or console.is_dumb_terminal:
                return
            # Drawn by hand: a thread that draws may hold a lock just when a worker is forked.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
                auto_refresh=False,
                expand=True,
            )
            streams = [h for h in runner.logger.handlers if getattr(h, "stream", 0) is sys.stdout]
            self._bar.start()
            self._streams = streams
            for handler in streams:
                handler.setStream(sys.stdout)  # now what prints above the bar
                handler.addFilter(_is_not_in_the_bar)
        self._tasks[what] = self._bar.add_task(what, total=total, completed=completed, figures="")

    def _draw(self, runner, what: str, done: int, images: int, loss: float | None = None) -> None:
        if self._bar is None:
            return
        task = self._bar.tasks[self._bar.task_ids.index(self._tasks[what])]
        now = time.monotonic()
        if now - self._drawn < SECONDS and done < (task.total or 0):
            return
        self._drawn = now
        mode = {"validate": "val"}.get(what, what)
        figures = []
        hub = runner.message_hub
        if "eta" in hub.runtime_info:
            left = int(hub.get_info("eta"))
            figures.append(f"{datetime.timedelta(seconds=left)} left")
        times = hub.log_scalars.get(f"{mode}/time")
        if times is not None and images:
            figures.append(f"{images / max(times.mean(WINDOW), 1e-9):.3g} images/s")
        figures.append(f"{peak_memory() / 1024:.1f} GiB")
        if loss is not None:
            figures.append(f"loss {loss:.4g}")
        if self._scores and what == "train":
            figures.append(self._scores)
        self._bar.update(task.id, completed=done, figures="  ".join(figures))
        self._bar.refresh()


def _is_not_in_the_bar(record: logging.LogRecord) -> bool:
    line = record.getMessage()
    return not re.match(r"(Epoch|Iter)\((train\)|(val|test)\).* eta: )", line)


@LOG_PROCESSORS.register_module()
class PeakMemoryLogProcessor(LogProcessor):
    """Add peak memory in MiB to mmengine's log line on machines without a GPU too."""

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if not torch.cuda.is_available():
            tag["memory"] = peak_memory()
            line += f"  memory: {tag['memory']}"
        return tag, line
