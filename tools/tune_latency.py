#!/usr/bin/env python
"""Measure a model's scores against its time on this machine, and write the config of a fast point.

convnext tune-latency CONFIG CHECKPOINT --data ROOT
convnext tune-latency CONFIG CHECKPOINT --vary proposals size --max-drop 0.01 --out fast.py
A detector's points are its numbers of proposals, a segmentor's its windows; both have image sizes,
dtypes and runtimes. Points that nothing else beats in both score and time are marked.
"""

import json
from pathlib import Path

from backbones.atomic_write import write_atomically
from backbones.errors import reported_in_one_line
from backbones.openmmlab.config.command_line import add_checkpoint, add_timing, run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.deployment.comparing import machine
from backbones.openmmlab.deployment.tuning import choose, plot, table, tune, write_config
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.tasks import task_of
from backbones.terminal import console


def main() -> None:
    parser = run_parser(__doc__)
    add_checkpoint(parser)
    add = parser.add_argument
    add("--vary", nargs="+", metavar="KNOB", help="vary these alone (default: all of the config's)")
    add(
        "--images",
        type=int,
        default=100,
        help="number of test images for the scores; default: %(default)s",
    )
    add_timing(parser, rounds=6)
    add(
        "--max-drop",
        type=float,
        default=0.01,
        help="largest loss of a score at the chosen point, on a scale of 1; default: %(default)s",
    )
    add("--out", type=Path, help="write the config of the fastest such point to this file")
    args = parser.parse_args()
    options = Options.of(args)
    config = prepare(options, "inspect")
    check_data(config, ("test",))
    assert options.checkpoint is not None  # the one published for the config, or an error
    points = tune(
        config,
        options.checkpoint,
        vary=args.vary,
        images=args.images,
        rounds=args.rounds,
        threads=args.threads,
        trust=args.trust_checkpoint,
    )
    task = task_of(config)
    console(200).print(table(points, task))
    chosen = choose(points, task, args.max_drop)
    folder = Path(config.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = dict(machine=machine(args.threads), points=[point.as_json() for point in points])
    write_atomically(folder / "latency.json", json.dumps(report, indent=2) + "\n")
    plot(points, task, folder / "latency.png")
    print(f"{folder / 'latency.json'}\n{folder / 'latency.png'}")
    print("fastest within --max-drop:", *(f"{k} {v}" for k, v in chosen.settings.items()))
    if args.out:
        write_config(config, chosen, args.out)
        print(args.out)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
