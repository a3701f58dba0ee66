#!/usr/bin/env python
"""List the suite's configs with their published scores, parameters and the licence of the weights.

convnext configs
convnext configs cascade 22k --json
convnext configs --task segmentation
The licence is that of the weights that the backbone starts from.
"""

import json
from dataclasses import asdict

from rich.progress import track
from rich.table import Table

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import parser_for
from backbones.openmmlab.config.names import INDEX, Listed, config_files, listed_configs
from backbones.openmmlab.doctor.complexity import build_on_meta
from backbones.openmmlab.tasks import task_of
from backbones.shipped import CONFIGS
from backbones.terminal import console

TASKS = ("detection", "segmentation", "classification")


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only names with all these words")
    parser.add_argument("--task", choices=TASKS, help="only configs of this task")
    parser.add_argument("--json", action="store_true", help="print all fields as JSON")
    parser.add_argument(
        "--write-index",
        action="store_true",
        help=f"rewrite configs/{INDEX} after configs have changed: count all parameters again",
    )
    args = parser.parse_args()
    if args.write_index:
        rows = [f' "{name}": {json.dumps(described(name))}' for name in track(config_files())]
        write_atomically(CONFIGS / INDEX, "{\n" + ",\n".join(rows) + "\n}\n")
    chosen = [
        listed
        for listed in listed_configs()
        if args.task in (None, listed.task) and all(word in listed.name for word in args.words)
    ]
    if not chosen:
        raise InputError(
            f"{' '.join(args.words)}: no config has these words in its name",
            code="unknown-name",
            where=" ".join(args.words),
        )
    if args.json:
        print(json.dumps([asdict(listed) | {"score": listed.score} for listed in chosen], indent=1))
    else:
        print_table(chosen)


def described(name: str) -> dict:
    """Count a config's parameters and name the weights that its backbone starts from."""
    config = load_config(name)
    parameters = sum(p.numel() for p in build_on_meta(config).parameters())
    start = config.model[task_of(config).backbone].get("init_cfg") or {}
    return {"parameters": parameters, "weights": start.get("checkpoint")}


def print_table(chosen: list[Listed]) -> None:
    """Print one line per config, by task."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("config", "published", "parameters", "weights' licence"):
        table.add_column(
            column, justify="right" if column == "parameters" else "left", no_wrap=True
        )
    for listed in chosen:
        licence = listed.licence or ("unknown" if listed.weights else "none: from scratch")
        table.add_row(listed.name, listed.score, f"{listed.parameters / 1e6:.1f} M", licence)
    output = console(120)
    output.print(table)
    output.print(f"{len(chosen)} configs; convnext train NAME --data ROOT trains one")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
