#!/usr/bin/env python
"""Check a config, its data and this machine before training, and list what is wrong.

python tools/doctor.py configs/detection/cascade_convnext_t.py
python tools/doctor.py configs/segmentation/upernet_convnext_t.py --data ROOT --json
Exit status: 0 if there are only notes, 1 with an error or a warning, 2 if the config cannot be
read. Nothing is written or downloaded. See docs/doctor.md.
"""

import json
import sys
from contextlib import redirect_stdout

from rich.console import Console
from rich.text import Text

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.config.validation import notes
from backbones.openmmlab.data.issues import SEVERITIES, Issue, by_severity, of_weight
from backbones.openmmlab.doctor.checks import check_all

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print only the issues, as a JSON list")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="open N image files of each split, evenly spread; 0 for all (default: 1000)",
    )
    args = parser.parse_args()
    if args.images < 0:
        raise InputError(f"--images {args.images}: must be 0 or more", where="--images")
    # Libraries print while they are imported; standard output is for the issues alone.
    with redirect_stdout(sys.stderr):
        config = prepare(Options.of(args), "inspect")
        issues = by_severity([*notes(config), *check_all(config, args.images)])
    if args.json:
        print(json.dumps([issue.as_dict() for issue in issues], indent=1))
    else:
        print_issues(str(args.config), issues)
    sys.exit(int(of_weight(issues)))


def print_issues(name: str, issues: list[Issue]) -> None:
    """Print one line for each issue, and how many there are."""
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
