#!/usr/bin/env python
"""Show what each step of the paper's roadmap from ResNet to ConvNeXt costs and scores; train them.

convnext roadmap                            the ResNet-50 regime (Table 10)
convnext roadmap --regime resnet200         the ResNet-200 regime (Table 11)
convnext roadmap --plot figure2.png
convnext roadmap --train data/imagenet --processes 8
convnext roadmap --train data/demo --config roadmap_demo
convnext roadmap --train data/imagenet --steps kernel_5 kernel_7 kernel_9
Training goes through the steps one after the other, with one recipe, data set and seed; run again,
it resumes where it stopped. `resnet` has torchvision's recipe and is trained by the default configs
only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.report.roadmap import plot, print_table, row
from backbones.openmmlab.training.roadmap import train_steps
from backbones.roadmap import REGIMES, STEPS


def main(argv: Sequence[str] | None = None) -> None:
    description, _, examples = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--regime", choices=REGIMES, default="resnet50", help="network that the roadmap starts from"
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="only these steps")
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw Figure 2 of the paper")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train",
        type=Path,
        metavar="DATA",
        help="train the steps on the data set in this folder and add a column of measured scores",
    )
    training.add_argument("--config", type=Path, help="config of the recipe (default: ImageNet's)")
    training.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/roadmap"), help="folder of the runs"
    )
    training.add_argument("--seed", type=int, default=0, help="random seed of the runs")
    training.add_argument(
        "--processes", type=int, default=1, help="number of ranks (GPUs), started by torchrun"
    )
    training.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="set config keys"
    )
    args = parser.parse_args(argv)
    steps = [step for step in STEPS if args.steps is None or step in args.steps]
    if args.plot and args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(
            f"--plot {args.plot}: the name must end in .png, .pdf or .svg", where="--plot"
        )
    if args.plot and not args.plot.parent.is_dir():  # said before hours of training
        raise InputError(
            f"--plot {args.plot}: the folder {args.plot.parent} does not exist; make it first",
            code="write-failed",
            where="--plot",
        )
    measured = {}
    if args.train:
        # Standard output carries the rows and nothing else.
        with redirect_stdout(sys.stderr):
            measured = train_steps(
                steps,
                args.train,
                regime=args.regime,
                config=args.config,
                work_dir=args.work_dir,
                seed=args.seed,
                processes=args.processes,
                options=args.cfg_options,
            )
    rows = [row(step, args.regime, measured.get(step)) for step in steps]
    if args.plot:
        plot(args.plot)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows, args.regime)
        if args.plot:
            print(f"drawn: {args.plot}")


if __name__ == "__main__":
    with reported_in_one_line("run the same command again to resume"):
        main()
