#!/usr/bin/env python
"""Measure a detector's or segmentor's robustness to corrupted images, and add it to its report.

convnext robustness cascade_convnext_t CHECKPOINT
convnext robustness CONFIG CHECKPOINT --severities 1 3 5 --images 500
convnext robustness CONFIG CHECKPOINT --corruptions fog snow motion_blur --boundary

The 15 corruptions of arXiv:1903.12261 at 5 severities are 76 evaluations. Run again with the same
arguments, it continues where it was stopped.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

from mmengine.dist import is_main_process
from mmengine.runner import TestLoop

from backbones.errors import reported_in_one_line
from backbones.openmmlab.config.command_line import add_checkpoint, run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.evaluation import corruption, robustness
from backbones.openmmlab.report import ReportHook
from backbones.openmmlab.segmentation.boundary import measure_boundaries
from backbones.openmmlab.tasks import task_of
from backbones.openmmlab.training.ranks import process_group_cleanup, unwrapped
from backbones.openmmlab.training.runner import Runner
from backbones.weights import trusted


def main() -> None:
    parser = run_parser(__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--severities", type=int, nargs="+", choices=corruption.SEVERITIES, metavar="1..5",
        default=corruption.SEVERITIES, help="severities to measure (default: all five)",
    )  # fmt: skip
    parser.add_argument(
        "--corruptions", nargs="+", choices=corruption.CORRUPTIONS, metavar="NAME",
        help=f"corruptions to measure (default: all of {', '.join(corruption.CORRUPTIONS)}; of "
        "other bands than 8-bit RGB those that are defined for them)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N", help="evaluate N of the test images, spread evenly"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the corruptions")
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="also measure boundary AP or boundary mIoU of the masks, which takes time",
    )
    args = parser.parse_args()
    library = corruption.load_library()
    config = prepare(Options.of(args), "evaluate")
    chosen = corruption.choose_corruptions(config, args.corruptions)
    check_data(config, ("test",))
    if args.boundary:
        measure_boundaries(config)
    settings = robustness.settings_digest(config)
    images = robustness.choose_images(config, args.images)
    corruption.insert_corruption(config, args.seed)
    # Workers that live on would keep the corruption that they were started with.
    config.test_dataloader.persistent_workers = False
    config.default_hooks.pop("report", None)
    with trusted() if args.trust_checkpoint else nullcontext():
        runner = Runner.from_cfg(config)
        if images != "all":
            metrics = cast(TestLoop, runner.test_loop).evaluator.metrics
            robustness.count_these_only(runner.test_dataloader.dataset, metrics)
        runner.load_or_resume()
    weights = robustness.weights_digest(unwrapped(runner.model))
    subject = dict(
        checkpoint=config.load_from, weights=weights, settings=settings, images=images,
        seed=str(args.seed), library=library,
    )  # fmt: skip
    results = robustness.Robustness(config.work_dir, subject)
    try:
        robustness.measure(runner, results, chosen, args.severities)
    finally:
        if results.record["clean"]:
            hook = ReportHook()
            hook.before_run(runner)
            hook.write(runner)
    if is_main_process():
        print(*robustness.summary_lines(results.record, task_of(config).metrics), sep="\n")
        print(f"scores: {Path(config.work_dir) / robustness.FILE}")


if __name__ == "__main__":
    with reported_in_one_line("run it again to continue"), process_group_cleanup():
        main()
