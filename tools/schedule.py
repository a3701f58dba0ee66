#!/usr/bin/env python
"""Show a config's learning rates, weight decay and weight average over a run; nothing is trained.

python tools/schedule.py configs/detection/cascade_convnext_t.py --plot schedule.png
python tools/schedule.py configs/classification/convnext_t_in1k.py --epoch-length 312
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import atomic_path
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.training.schedule import Trace, iterations_per_epoch, trace

FORMATS = (".png", ".svg", ".pdf")


def main() -> None:
    description, _, examples = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE", help=" or ".join(FORMATS))
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the values of every iteration")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder of the data set")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that share an epoch, 1"
    )
    parser.add_argument(
        "--epoch-length",
        type=int,
        metavar="N",
        help="iterations of an epoch; default: counted from the data set",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help="change the config"
    )
    args = parser.parse_args()
    for name in ("processes", "epoch_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more")
    if args.plot and args.plot.suffix not in FORMATS:
        raise InputError(f"--plot {args.plot}: give a file that ends in {', '.join(FORMATS)}")
    for path in filter(None, (args.plot, args.csv)):
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: the folder {path.absolute().parent} does not exist")
    config = load_config(args.config, args.cfg_options)
    if args.data:
        use_data(config, args.data)
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


def columns(values: Trace) -> dict[str, np.ndarray]:
    """What is shown of every iteration: least and highest rates and decays, and the average's."""
    found = {
        "lr, least": values.lr.min(axis=1),
        "lr, highest": values.lr.max(axis=1),
        "weight decay, least": values.weight_decay.min(axis=1),
        "weight decay, highest": values.weight_decay.max(axis=1),
    }
    if values.ema_decay is not None:
        found["EMA decay"] = values.ema_decay
    return found


def print_table(name: Path, values: Trace) -> None:
    """Print the values at the start, at the peak, half way and at the end."""
    shown = columns(values)
    last = len(values.lr) - 1
    table = Table("iteration", *shown)
    for i in sorted({0, int(values.lr.max(axis=1).argmax()), last // 2, last}):
        table.add_row(f"{i:,}", *(f"{column[i]:.6g}" for column in shown.values()))
    print(f"{name}, {last + 1:,} iterations")
    Console().print(table)


def write_csv(values: Trace, path: Path) -> None:
    """Write every iteration's values."""
    shown = columns(values)
    rows = np.stack([np.arange(len(values.lr)), *shown.values()], axis=1)
    header = ",".join(name.replace(", ", "_").replace(" ", "_") for name in shown)
    with atomic_path(path) as part:
        np.savetxt(part, rows, "%.10g", ",", header=f"iteration,{header}", comments="")


def plot(values: Trace, path: Path, title: str) -> None:
    """Draw one panel for each kind of value, every group of the optimizer as a line."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"learning rate": values.lr, "weight decay": values.weight_decay}
    if values.ema_decay is not None:
        moved = np.where(values.ema_decay < 1, 1 - values.ema_decay, np.nan)
        panels["1 - EMA decay"] = moved[:, None]  # 0.9999 would look like 1
    figure, axes = pyplot.subplots(
        len(panels), 1, sharex=True, figsize=(8, 2.6 * len(panels)), layout="constrained"
    )
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        marker = "." if np.isnan(lines).any() else None  # with accumulation most are left out
        axis.plot(lines, linewidth=1, marker=marker, markersize=2)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_title(title)
    axes[-1].set_xlabel("iteration")
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:])
    pyplot.close(figure)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
