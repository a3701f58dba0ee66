"""Evaluate a published model by the published protocol."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

import backbones
from backbones.checksums import sha256_of
from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.data.download import DATASETS, prepare_archives, reserved
from backbones.openmmlab.data.own_data import change_place
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.report.experiment import environment
from backbones.openmmlab.tasks import task_of
from backbones.openmmlab.training.runner import Runner
from backbones.weights import TrainedModel
from backbones.weights.sources import is_offline, locate

from .figures import IMAGES, Figure, published_figures
from .verdict import Verdict, read_verdict, resumed_figures

# What a validation run reads of each task's published data set.
ARCHIVES = {
    "detection": [a for a in DATASETS["coco"] if not a.folder.endswith("train2017")],
    "segmentation": list(DATASETS["ade20k"]),
}
PAPER = "paper"  # the protocol of test-time augmentation in the segmentors' configs


@dataclass(frozen=True)
class Request:
    """Hold how models are to be reproduced.

    Attributes:
        out: folder of the verdicts.
        data: folder of the published data set; None for the config's, which is downloaded.
        mini: folder of a subset in the same layout, instead of `data`.
        expect: an earlier verdict, whose figures replace the published ones.
        mirror: URL of a folder with the data set's zip files.
        cfg_options: dotted config keys and their values.
    """

    out: Path = Path("reproduced")
    data: Path | None = None
    mini: Path | None = None
    expect: Path | None = None
    mirror: str | None = None
    cfg_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.expect and not self.mini:
            raise InputError(
                "--expect: only with --data-mini; on the whole set the figures are the published",
                where="--expect",
            )
        if self.data and self.mini:
            raise InputError("--data and --data-mini: give one of them", where="--data-mini")


def reproduce(model: TrainedModel, request: Request) -> Verdict:
    """Evaluate a model, unless an earlier run has, and write the verdict after each protocol.

    Args:
        model: the published model.
        request: what on, and where the verdict goes: OUT/NAME.json and OUT/NAME.md.

    Raises:
        InputError: a download failed, the data is not there or not the published set, or a file
            cannot be written.
    """
    config = load_config(model.config, request.cfg_options)
    data = request.mini or request.data or _published_data(config, request)
    settings = _settings(model, data, request)
    figures = _expected(model, request)
    path = request.out / f"{model.name}.json"
    request.out.mkdir(parents=True, exist_ok=True)
    figures = resumed_figures(path, settings, figures)
    verdict = Verdict(settings, figures, request.mini is None, _today())
    for multi_scale in (False, True):
        wanted = [f for f in verdict.figures if f.multi_scale == multi_scale]
        if all(figure.measured is not None for figure in wanted):
            continue
        metrics = _evaluate(model, data, request, multi_scale)
        measured = [f.measure(metrics) if f in wanted else f for f in verdict.figures]
        verdict = replace(verdict, figures=measured)
        verdict.write(path)
    return verdict


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _expected(model: TrainedModel, request: Request) -> list[Figure]:
    figures = published_figures(model)
    if request.mini is None:
        return figures
    known: dict[str, float] = {}
    if request.expect:
        known = {f["name"]: f["measured"] for f in read_verdict(request.expect)["figures"]}
    return [Figure(figure.name, known.get(figure.name)) for figure in figures]


def _settings(model: TrainedModel, data: Path, request: Request) -> dict[str, Any]:
    path, _ = locate(model.source)
    return dict(
        model=model.name,
        licence=model.licence,
        url=model.source,
        sha256=sha256_of(path),
        data=os.path.abspath(data),
        options=", ".join(f"{key}={value}" for key, value in request.cfg_options.items()),
        machine={"suite": backbones.__version__, **environment()},
    )


def _published_data(config: Config, request: Request) -> Path:
    """Return the config's own folder, after downloading what is missing of its validation set."""
    folder = Path(config.test_dataloader.dataset.data_root)
    if not is_offline():
        archives = ARCHIVES[task_of(config).name]
        if request.mirror:
            mirror = request.mirror.rstrip("/")
            archives = [replace(a, url=f"{mirror}/{a.name}") for a in archives]
        root = Path(folder.parts[0])
        if any(not (root / a.folder).is_dir() for a in archives):
            with reserved(root):
                prepare_archives(root, tuple(archives))
    return folder


def _evaluate(
    model: TrainedModel, data: Path, request: Request, multi_scale: bool
) -> Mapping[str, float]:
    """Return an evaluator's metrics, of float32 throughout and on images as published."""
    name = f"{model.name}-multi_scale" if multi_scale else model.name
    options = Options(
        Path(model.config),
        cfg_options=request.cfg_options,
        work_dir=request.out / "runs" / name,
        checkpoint=model.name,
        tta=PAPER if multi_scale else None,
    )
    config = prepare(options, "evaluate")
    if multi_scale and model.publisher == "openmmlab":  # mmseg 0.x slides at these scales too
        config.model.module.test_cfg = load_config(model.config, request.cfg_options).model.test_cfg
    change_place(config, data)
    config.setdefault("env_cfg", {})["tf32"] = False
    check_data(config, ("test",))
    runner = Runner.from_cfg(config)
    test_loop: Any = runner.test_loop
    images, known = len(test_loop.dataloader.dataset), IMAGES[task_of(config).name]
    if request.mini is None and images != known:
        raise InputError(
            f"{data}: {images} images, {known} in the published validation set; for a subset use "
            "--data-mini",
            code="bad-annotations",
            where=data,
        )
    print_log(f"{name}: {images} images of {data}", "current")
    return runner.test()
