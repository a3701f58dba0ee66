#!/usr/bin/env python
"""Measure how a detector or segmentor stands up to corrupted images, and show it in its report.

python tools/robustness.py configs/detection/cascade_convnext_t.py CHECKPOINT
python tools/robustness.py CONFIG CHECKPOINT --severities 1 3 5 --images 500
python tools/robustness.py CONFIG CHECKPOINT --corruptions fog snow motion_blur --boundary

The 15 corruptions of arXiv:1903.12261 at 5 severities are 76 evaluations. Started again with the
same arguments it goes on where it was stopped.
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import leave_training_out
from backbones.openmmlab.config.command_line import run_config, run_parser
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.doctor.examination import check_data
from backbones.openmmlab.evaluation.corruption import (
    CORRUPTIONS,
    SEVERITIES,
    insert_corruption,
    prepare,
)
from backbones.openmmlab.evaluation.robustness import FILE, Robustness, weights_digest
from backbones.openmmlab.report import ReportHook
from backbones.openmmlab.report.page import NAMES, main_metrics
from backbones.openmmlab.segmentation.boundary import measure_boundaries
from backbones.openmmlab.training.ranks import process_group_cleanup
from backbones.openmmlab.training.runner import Runner
from backbones.weights.checkpoints import trusted


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--severities", type=int, nargs="+", choices=SEVERITIES, default=SEVERITIES, metavar="1..5"
    )
    parser.add_argument(
        "--corruptions", nargs="+", choices=CORRUPTIONS, default=CORRUPTIONS, metavar="NAME",
        help=f"default: all of {', '.join(CORRUPTIONS)}",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N", help="of the test images only N, spread evenly"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions' draws")
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="measure boundary AP or boundary mIoU of the masks too; it costs time",
    )
    args = parser.parse_args()
    if args.images is not None and args.images < 1:
        raise InputError(f"--images {args.images}: at least one is needed")
    library = prepare()
    config = run_config(args)
    leave_training_out(config)
    config.load_from = args.checkpoint
    check_data(config, ("test",))
    if args.boundary:
        measure_boundaries(config)
    settings = settings_digest(config)
    images = choose_images(config, args.images)
    insert_corruption(config, args.seed)
    # Workers that live on would keep the corruption that they were started with.
    config.test_dataloader.persistent_workers = False
    config.default_hooks.pop("report", None)
    fit_to_machine(config)
    with trusted() if args.trust_checkpoint else nullcontext():
        runner = Runner.from_cfg(config)
        if images != "all":
            count_these_only(runner)
        runner.load_or_resume()
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    results = Robustness(
        config.work_dir,
        dict(
            checkpoint=args.checkpoint,
            weights=weights_digest(model),
            settings=settings,
            images=images,
            seed=str(args.seed),
            library=library,
        ),
    )
    try:
        measure(runner, results, args.corruptions, args.severities)
    finally:
        if results.record["clean"]:
            hook = ReportHook()
            hook.before_run(runner)
            hook.write(runner)
    if is_main_process():
        for name in main_metrics(results.record["clean"]):
            row = results.record["summary"][name]
            shown = {key: _shown(value) for key, value in row.items()}
            print(
                f"{NAMES.get(name, name)}: clean {shown['clean']}, under corruption (mPC) "
                f"{shown['mPC']}, share of clean (rPC) {shown['rPC']}"
            )
        print(f"scores: {Path(config.work_dir) / FILE}")


def settings_digest(config: Config) -> str:
    """What the scores hang on besides the weights: model, data set, evaluator, precision."""
    keys = ("model", "test_evaluator", "inference_dtype")
    parts = [config.test_dataloader.dataset, *(config.get(key) for key in keys)]
    text = "\n".join(Config(dict(part=part)).dump() for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose_images(config: Config, count: int | None) -> str:
    """Have the config test on `count` images, spread evenly; which ones these are, as text.

    Raises:
        InputError: the config has a choice of its own.
    """
    dataset = config.test_dataloader.dataset
    if count is None:
        return "all"
    if dataset.get("indices") is not None:
        raise InputError(f"--images: {config.filename} has test_dataloader.dataset.indices already")
    total = len(DATASETS.build(dict(dataset, pipeline=[], _scope_=config.default_scope)))
    if count >= total:
        return "all"
    dataset.indices = np.linspace(0, total - 1, count).round().astype(int).tolist()
    return f"{count} of {total}"


def count_these_only(runner: Runner) -> None:
    """Have COCO's metrics count the images of the data loader; the others would be missed."""
    dataset = runner.test_dataloader.dataset
    for metric in runner.test_loop.evaluator.metrics:
        if hasattr(metric, "img_ids"):
            metric.img_ids = [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))]


def measure(runner: Runner, results: Robustness, corruptions, severities) -> None:
    """Evaluate whatever is not yet in `results`, clean images first."""
    pipeline = runner.test_dataloader.dataset.pipeline.transforms
    (step,) = [one for one in pipeline if type(one).__name__ == "CorruptImage"]
    todo = [(None, 0), *((name, s) for name in corruptions for s in sorted(set(severities)))]
    for i, (corruption, severity) in enumerate(todo, 1):
        what = f"{corruption}, severity {severity}" if corruption else "clean images"
        done = results.scores(corruption, severity)
        said = " (done before)" if done else ""
        if not done:
            print_log(f"{i} of {len(todo)}: {what}", runner.logger)
            step.corruption, step.severity = corruption, severity
            metrics = runner.test()
            results.add(corruption, severity, metrics, write=is_main_process())
            done = results.scores(corruption, severity)
        figures = [f"{NAMES.get(n, n)} {_shown(done[n])}" for n in main_metrics(done)]
        print_log(f"{i} of {len(todo)}: {what}: {', '.join(figures)}{said}", runner.logger)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    with reported_in_one_line("run it again to go on"), process_group_cleanup():
        main()
