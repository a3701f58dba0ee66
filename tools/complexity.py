#!/usr/bin/env python
"""Count a config's parameters and multiply-adds by part, as the papers do; no weights are needed.

python tools/complexity.py configs/detection/cascade_convnext_t.py
python tools/complexity.py configs/segmentation/upernet_convnext_t.py --size 1024 1024 --json
"""

import json
import sys
from contextlib import redirect_stdout

from rich.console import Console
from rich.table import Table

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import add_config, parser_for
from backbones.openmmlab.doctor.complexity import Complexity, count


def main() -> None:
    parser = parser_for(__doc__)
    add_config(parser)
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("WIDTH", "HEIGHT"),
        help="size of the image (default: 1280 800 for detectors, the test size otherwise)",
    )
    parser.add_argument("--json", action="store_true", help="print only the numbers, as JSON")
    args = parser.parse_args()
    if args.size and min(args.size) < 1:
        raise InputError(f"--size {args.size[0]} {args.size[1]}: must be positive", where="--size")
    # Libraries print while they are imported; standard output is for the numbers alone.
    with redirect_stdout(sys.stderr):
        config = load_config(args.config, args.cfg_options)
        complexity = count(config, tuple(args.size) if args.size else None)
    if args.json:
        print(json.dumps({"params": complexity.params, "macs": complexity.macs}))
    else:
        print_table(str(args.config), complexity)


def print_table(name: str, complexity: Complexity) -> None:
    """Print the parts in data-flow order, with their shares, and the total."""
    params, macs = complexity.params, complexity.macs
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "parameters", "share", "multiply-adds", "share"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for part in [*(part for part in params if part != "total"), "total"]:
        counted = part in macs
        table.add_row(
            part,
            f"{params[part]:,}",
            f"{params[part] / params['total']:.1%}",
            f"{macs[part] / 1e9:,.2f} G" if counted else "-",
            f"{macs[part] / macs['total']:.1%}" if counted else "-",
            end_section=True,
        )
    width, height = complexity.size
    print(f"{name}, one {width}x{height} image")
    Console().print(table)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
