#!/usr/bin/env python
"""Show a config's learning rates, weight decay and EMA decay over a run; nothing is trained.

convnext schedule cascade_convnext_t --plot schedule.png
convnext schedule convnext_t_in1k --epoch-length 312
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import add_config, add_data, parser_for
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.training.schedule import Trace, iterations_per_epoch, trace
from backbones.openmmlab.training.schedule_files import columns, plot, write_csv

FORMATS = (".png", ".svg", ".pdf")


def main() -> None:
    parser = parser_for(__doc__)
    add_config(parser)
    add_data(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"draw the schedule: {' or '.join(FORMATS)}"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the values of every iteration"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="number of ranks that share an epoch (default: 1)",
    )
    parser.add_argument(
        "--epoch-length",
        type=int,
        metavar="N",
        help="iterations of an epoch (default: counted from the data set)",
    )
    args = parser.parse_args()
    for name in ("processes", "epoch_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {getattr(args, name)}: must be 1 or more", where=option)
    if args.plot and args.plot.suffix not in FORMATS:
        raise InputError(
            f"--plot {args.plot}: the file must end in {', '.join(FORMATS)}", where="--plot"
        )
    for path in filter(None, (args.plot, args.csv)):
        if not path.absolute().parent.is_dir():
            raise InputError(
                f"{path}: the folder {path.absolute().parent} does not exist",
                code="not-found",
                where=path,
            )
    config = prepare(Options.of(args), "inspect")
    length = args.epoch_length
    if length is None:
        by_iterations = "max_iters" in (config.get("train_cfg") or {})
        length = 1 if by_iterations else iterations_per_epoch(config, args.processes)
    values = trace(config, length)
    print_table(args.config, values)
    if args.csv:
        write_csv(values, args.csv)
    if args.plot:
        plot(values, args.plot, args.config.stem)
        print(f"plot: {args.plot}")


def print_table(name: Path, values: Trace) -> None:
    """Print the values at the start, at the peak, half way and at the end."""
    shown = columns(values)
    last = len(values.lr) - 1
    table = Table("iteration", *shown)
    for i in sorted({0, int(values.lr.max(axis=1).argmax()), last // 2, last}):
        table.add_row(f"{i:,}", *(f"{column[i]:.6g}" for column in shown.values()))
    print(f"{name}, {last + 1:,} iterations")
    Console().print(table)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
