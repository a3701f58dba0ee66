#!/usr/bin/env python
"""Examine a config, its data and this machine, and say all that would go wrong in training.

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
from backbones.openmmlab.data.findings import SEVERITIES, Finding, of_weight
from backbones.openmmlab.doctor.examination import examine

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="the findings alone, as a JSON list")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="open N image files of each split, spread evenly; 0 for all (default: 1000)",
    )
    args = parser.parse_args()
    if args.images < 0:
        raise InputError(f"--images {args.images}: give 0 or a positive number")
    # Libraries print while they are imported; standard output is for the findings alone.
    with redirect_stdout(sys.stderr):
        findings = examine(run_config(args), args.images)
    if args.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1))
    else:
        print_findings(str(args.config), findings)
    sys.exit(int(of_weight(findings)))


def print_findings(name: str, findings: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        line = Text(f"{finding.severity:<9}", STYLES[finding.severity])
        console.print(line + Text(str(finding), "default"))
    counts = [sum(f.severity == severity for f in findings) for severity in SEVERITIES]
    shown = ", ".join(
        f"{count} {severity}{'s' * (count != 1)}"
        for count, severity in zip(counts, SEVERITIES, strict=True)
    )
    console.print(f"{name}: {shown}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
