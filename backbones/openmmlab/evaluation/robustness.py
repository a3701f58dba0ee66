"""Evaluate a model on corrupted images, and keep the scores in `robustness.json`."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch import nn

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.tasks import Metric, task_of

from .corruption import CorruptImage

VERSION = 1
FILE = "robustness.json"


class Robustness:
    """Store scores by corruption and severity in a file, written atomically after each.

    Args:
        work_dir: where `robustness.json` is or will be.
        subject: what is measured, text by name. Scores of another subject are never mixed in; only
            its `checkpoint`, which is a path, may differ.

    Raises:
        InputError: the file is damaged, or holds scores of another subject.
    """

    def __init__(self, work_dir: str | os.PathLike, subject: Mapping[str, str]):
        self.path = Path(work_dir) / FILE
        self.record: dict = dict(version=VERSION, subject=dict(subject), clean=None, corrupted={})
        if found := read_robustness(work_dir):
            known = found["subject"]
            for key in subject:
                if key != "checkpoint" and known.get(key) != subject[key]:
                    raise InputError(
                        f"{self.path}: holds scores of {known.get('checkpoint')}, measured with "
                        f"{key} {known.get(key)}, not {subject[key]}; move it away or give "
                        "another --work-dir",
                        code="bad-argument",
                        where=self.path,
                    )
            self.record = found

    def scores(self, corruption: str | None, severity: int) -> dict | None:
        """Return the metrics of a finished evaluation; None if it has not been run.

        Args:
            corruption, severity: None and 0 for clean images.
        """
        if corruption is None:
            return self.record["clean"]
        return self.record["corrupted"].get(corruption, {}).get(str(severity))

    def add(
        self, corruption: str | None, severity: int, metrics: Mapping[str, float], write: bool
    ) -> None:
        """Add the metrics of an evaluation.

        Args:
            corruption, severity: None and 0 for clean images.
            metrics: metrics of mmengine's evaluator; COCO's -1, no such object, becomes None.
            write: whether this rank writes the file.
        """
        figures = {name: _score(float(value)) for name, value in metrics.items()}
        if corruption is None:
            self.record["clean"] = figures
        else:
            self.record["corrupted"].setdefault(corruption, {})[str(severity)] = figures
        self.record["summary"] = summary(self.record)
        if write:
            write_atomically(self.path, json.dumps(self.record, indent=1, allow_nan=False))


def read_robustness(work_dir: str | os.PathLike) -> dict:
    """Read `robustness.json` of a work dir; empty if it does not exist.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(work_dir) / FILE
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}, not {VERSION}")
        for scores in (found["clean"] or {}, *found["corrupted"].values()):
            scores.items()
        found["subject"].items()
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({error!r}); move it away to measure again",
            code="broken-file",
            where=path,
        ) from None


def summary(record: Mapping) -> dict[str, dict[str, float | None]]:
    """Return for each metric its clean score, mPC and rPC (arXiv:1907.07484, section 3.3).

    mPC is the mean over corruptions of the mean over severities, rPC its share of the clean score.
    Both are None until every corruption that was begun has been measured at the same severities.
    """
    corrupted = list(record["corrupted"].values())
    whole = bool(corrupted) and all(row.keys() == corrupted[0].keys() for row in corrupted)
    result = {}
    for name, clean in (record["clean"] or {}).items():
        cells = [scores.get(name) for row in corrupted for scores in row.values()]
        mean = sum(cells) / len(cells) if whole and None not in cells else None
        share = mean / clean if mean is not None and clean else None
        result[name] = dict(clean=clean, mPC=mean, rPC=share)
    return result


def weights_digest(model: nn.Module) -> str:
    """Return the first 16 digits of the SHA-256 of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if tensor.numel():
            rows = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(rows.numpy())
    return digest.hexdigest()[:16]


def settings_digest(config: Config) -> str:
    """Return a digest of what scores depend on besides weights: model, data, evaluator, dtype."""
    keys = ("model", "test_evaluator", "inference_dtype")
    parts = [config.test_dataloader.dataset, *(config.get(key) for key in keys)]
    text = "\n".join(cast(str, Config(dict(part=part)).dump()) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose_images(config: Config, count: int | None) -> str:
    """Restrict the test to `count` evenly spread images; return them as text.

    Raises:
        InputError: `count` is below 1, or the config has a choice of its own.
    """
    dataset = config.test_dataloader.dataset
    if count is None:
        return "all"
    if count < 1:
        raise InputError(
            f"--images {count}: give at least 1", code="bad-argument", where="--images"
        )
    if dataset.get("indices") is not None:
        raise InputError(
            f"--images: {config.filename} already selects images by test_dataloader.dataset."
            "indices; remove one of the two",
            code="bad-argument",
            where="test_dataloader.dataset.indices",
        )
    total = len(DATASETS.build(dict(dataset, pipeline=[], _scope_=config.default_scope)))
    if count >= total:
        return "all"
    dataset.indices = np.linspace(0, total - 1, count).round().astype(int).tolist()
    return f"{count} of {total}"


def count_these_only(dataset: Any, metrics: Sequence[Any]) -> None:
    """Make COCO's metrics count only the images of a data set; all others would count as missed.

    Args:
        dataset: the test DataLoader's dataset.
        metrics: the evaluator's metrics.
    """
    for metric in metrics:
        if hasattr(metric, "img_ids"):
            metric.img_ids = [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))]


def measure(
    runner: Any,
    results: Robustness,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> None:
    """Run the evaluations that `results` lacks, clean images first.

    Args:
        runner: mmengine's, with a `CorruptImage` in its test pipeline.
        results: keeps the scores.
        corruptions, severities: those to measure, of `corruption.CORRUPTIONS` and `SEVERITIES`.
    """
    pipeline = runner.test_dataloader.dataset.pipeline.transforms
    (step,) = [transform for transform in pipeline if isinstance(transform, CorruptImage)]
    main = task_of(runner.cfg).main_metrics
    todo = [(None, 0), *((name, s) for name in corruptions for s in sorted(set(severities)))]
    for i, (corruption, severity) in enumerate(todo, 1):
        what = f"{corruption}, severity {severity}" if corruption else "clean images"
        scores = results.scores(corruption, severity)
        note = " (measured before)" if scores is not None else ""
        if scores is None:
            print_log(f"{i} of {len(todo)}: {what}", runner.logger)
            step.corruption, step.severity = corruption, severity
            results.add(corruption, severity, runner.test(), write=is_main_process())
            scores = results.scores(corruption, severity) or {}
        shown = [f"{metric.name} {_shown(scores[metric.key])}" for metric in _known(main, scores)]
        print_log(f"{i} of {len(todo)}: {what}: {', '.join(shown)}{note}", runner.logger)


def summary_lines(record: Mapping, metrics: Sequence[Metric]) -> list[str]:
    """Return the summary of the main metrics, one line each.

    Args:
        record: what `robustness.json` holds.
        metrics: the task's metrics.
    """
    lines = []
    for metric in _known([m for m in metrics if m.main], record["clean"]):
        row = {key: _shown(value) for key, value in record["summary"][metric.key].items()}
        lines.append(
            f"{metric.name}: clean {row['clean']}, under corruption (mPC) {row['mPC']}, share of "
            f"clean (rPC) {row['rPC']}"
        )
    return lines


def _known(metrics: Sequence[Metric], scores: Mapping) -> list[Metric]:
    return [metric for metric in metrics if metric.key in scores]


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _score(value: float) -> float | None:
    return value if math.isfinite(value) and value >= 0 else None
