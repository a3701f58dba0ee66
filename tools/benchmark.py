#!/usr/bin/env python
"""Compare a model's exported files on this machine: outputs, scores, speed and memory.

convnext benchmark CONFIG CHECKPOINT model.onnx model.xml model.pt2
convnext benchmark CONFIG CHECKPOINT model.onnx model-int8.onnx --data ROOT --images 200
Each is timed in a process of its own, one after the other, from the resized image to the result in
pixels of the original one, after its outputs have been compared with the model's.
"""

import json
from pathlib import Path

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import add_checkpoint, add_timing, run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.deployment.comparing import compare_files, difference_lines, table
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.prediction.exported import RUNTIMES, is_exported
from backbones.openmmlab.tasks import task_of
from backbones.terminal import console


def main() -> None:
    parser = run_parser(__doc__)
    add_checkpoint(parser)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="exported files of the model")
    add(
        "--images",
        type=int,
        default=32,
        help="number of test images for outputs and scores; default: %(default)s",
    )
    add_timing(parser, rounds=10)
    add(
        "--tolerance",
        type=float,
        help="maximum relative difference of a file's outputs and scores; default: 0.001, of "
        "half precision 0.02, of INT8 any",
    )
    add("--out", type=Path, help="JSON file (default: benchmark.json in the work dir)")
    args = parser.parse_args()
    if is_exported(args.checkpoint):  # given without a checkpoint
        args.files.insert(0, Path(args.checkpoint))
        args.checkpoint = None
    for file in args.files:
        if not is_exported(file):
            raise InputError(
                f"{file}: is no exported file; they end in {', '.join(RUNTIMES)}", where=file
            )
        if not file.is_file():
            raise InputError(f"{file}: no such file", code="not-found", where=file)
    options = Options.of(args)
    config = prepare(options, "inspect")
    check_data(config, ("test",))
    assert options.checkpoint is not None  # the one published for the config, or an error
    rows, report = compare_files(
        config,
        options.checkpoint,
        args.files,
        images=args.images,
        rounds=args.rounds,
        threads=args.threads,
        tolerance=args.tolerance,
        trust=args.trust_checkpoint,
    )
    print(*difference_lines(rows), sep="\n")
    console(200).print(table(rows, task_of(config)))
    out = args.out or Path(config.work_dir) / "benchmark.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(report, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
