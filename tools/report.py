#!/usr/bin/env python
"""Compare runs on one page: scores, curves over each other, where their configs differ.

python tools/report.py work_dirs/a work_dirs/b --out comparison.html
python tools/report.py work_dirs/a             # writes its report.html again
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.report.comparison import compare, score_table
from backbones.openmmlab.report.metrics import Metrics
from backbones.openmmlab.report.page import render
from backbones.openmmlab.report.saved import named_runs, read_report


def main() -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="work dirs of runs, or their report.json files"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="HTML file to write (default: comparison.html, or report.html in the work dir of a "
        "single run)",
    )
    args = parser.parse_args()
    reports = {name: read_report(path) for name, path in named_runs(args.runs).items()}
    alone = len(reports) == 1
    try:
        page = render(*reports.values()) if alone else compare(reports)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(reports)
        raise InputError(
            f"{names}: report.json is damaged ({error!r}); write it again with tools/test.py",
            code="broken-file",
            where=names,
        ) from error
    folder = args.runs[0] if args.runs[0].is_dir() else args.runs[0].parent
    out = args.out or (folder / "report.html" if alone else Path("comparison.html"))
    if not out.parent.is_dir():
        raise InputError(
            f"--out {out}: no such folder {out.parent}", code="not-found", where=out.parent
        )
    write_atomically(out, page)
    if not alone:
        show(reports)
    print(f"report: {out}")


def show(reports: dict[str, dict]) -> None:
    """Print the scores of several runs side by side."""
    runs = list(reports.values())
    metrics = Metrics(runs)
    table = Table("", *map(escape, reports))
    for key, values in score_table(runs):
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        table.add_row(escape(metrics.name(key)), *cells)
    Console().print(table)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
