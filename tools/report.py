#!/usr/bin/env python
"""Compare runs on one page: scores, curves over each other, where their configs differ.

python tools/report.py work_dirs/a work_dirs/b --out comparison.html
python tools/report.py work_dirs/a             # writes its report.html anew
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.report.hook import VERSION
from backbones.openmmlab.report.page import NAMES, compare, render, score_table


def main() -> None:
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="work dirs, or report.json files")
    parser.add_argument("--out", type=Path, help="default: comparison.html, or the run's own page")
    args = parser.parse_args()
    reports = {name: read(path) for name, path in named(args.runs).items()}
    try:
        page = render(*reports.values()) if len(reports) == 1 else compare(reports)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{', '.join(reports)}: report.json is damaged ({error!r})") from error
    if len(reports) == 1:
        folder = args.runs[0] if args.runs[0].is_dir() else args.runs[0].parent
        out = args.out or folder / "report.html"
    else:
        out = args.out or Path("comparison.html")
        table = Table("", *map(escape, reports))
        for key, values in score_table(list(reports.values())):
            cells = ["" if value is None else f"{value:.4g}" for value in values]
            table.add_row(escape(NAMES.get(key, key)), *cells)
        Console().print(table)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no such folder {out.parent}")
    write_atomically(out, page)
    print(f"report: {out}")


def named(paths: list[Path]) -> dict[str, Path]:
    """Runs by the name of their folder, or by as much of the path as tells them apart."""
    folders = [(path if path.is_dir() else path.parent).absolute() for path in paths]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise InputError(f"{paths[0]}: the same run is named twice")


def read(path: Path) -> dict:
    """A run's figures."""
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such report; tools/train.py and tools/test.py write it")
    try:
        report = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not a report ({error})") from None
    if not isinstance(report, dict) or report.get("version") != VERSION:
        raise InputError(f"{file}: not a report of version {VERSION}; run tools/test.py again")
    return report


if __name__ == "__main__":
    with reported_in_one_line():
        main()
