#!/usr/bin/env python
"""Check a config, its data and this machine before training, and list what is wrong.

python tools/doctor.py configs/detection/cascade_convnext_t.py
python tools/doctor.py configs/segmentation/upernet_convnext_t.py --data ROOT --json
Exit status: 0 with nothing but notes, 1 with an error or a warning, 2 for a config that cannot be
read. Nothing is written or downloaded. See docs/doctor.md.
"""

import json
import sys
from contextlib import redirect_stdout

from rich.console import Console
from rich.text import Text

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import run_config, run_parser
from backbones.openmmlab.data.issues import SEVERITIES, Issue, of_weight
from backbones.openmmlab.doctor.checks import check_all

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="the issues alone, as a JSON list")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="open N image files of each split, spread evenly; 0 for all (default: 1000)",
    )
    args = parser.parse_args()
    if args.images < 0:
        raise InputError(
            f"--images {args.images}: give 0 or a positive number",
            code="bad-argument",
            where="--images",
        )
    # Libraries print while they are imported; standard output is for the issues alone.
    with redirect_stdout(sys.stderr):
        issues = check_all(run_config(args), args.images)
    if args.json:
        print(json.dumps([issue.as_dict() for issue in issues], indent=1))
    else:
        print_issues(str(args.config), issues)
    sys.exit(int(of_weight(issues)))


def print_issues(name: str, issues: list[Issue]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for issue in issues:
        line = Text(f"{issue.severity:<9}", STYLES[issue.severity])
        console.print(line + Text(str(issue), "default"))
    counts = [sum(f.severity == severity for f in issues) for severity in SEVERITIES]
    shown = ", ".join(
        f"{count} {severity}{'s' * (count != 1)}"
        for count, severity in zip(counts, SEVERITIES, strict=True)
    )
    console.print(f"{name}: {shown}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
