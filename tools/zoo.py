#!/usr/bin/env python
"""List published ConvNeXt weights with their licences and scores, or tell all about one.

python tools/zoo.py --task segmentation --commercial-ok
python tools/zoo.py convnextv2_base_1k_224_fcmae
python tools/zoo.py --published FOLDER
A score is a published one, reached by the method beside it; methods are not comparable. What a
config's checkpoint takes is the `source`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from backbones.errors import reported_in_one_line
from backbones.weights.zoo import ZOO, Score, Weights, find, published_in

# Field with the score of a task; weights without one are left out.
TASKS = {"detection": "coco", "segmentation": "ade20k", "classification": "imagenet"}


def main() -> None:
    description, _, examples = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="all about the weights of this name or source, or in a folder of tools/publish.py",
    )
    parser.add_argument(
        "--published", metavar="FOLDER", help="what tools/publish.py put there, not the zoo"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="with a published score in it, the best first"
    )
    parser.add_argument(
        "--commercial-ok", action="store_true", help="whose licence permits commercial use"
    )
    parser.add_argument("--arch", choices=sorted({weights.arch for weights in ZOO}))
    parser.add_argument("--json", action="store_true", help="everything known, as JSON")
    args = parser.parse_args()
    chosen = published_in(args.published) if args.published else ZOO
    total = len(chosen)
    chosen = [find(args.name)] if args.name else chosen
    chosen = select(chosen, args.task, args.commercial_ok, args.arch)
    if args.json:
        print(json.dumps([everything(weights) for weights in chosen], indent=1))
    elif args.name:
        for weights in chosen:
            print_one(weights)
    else:
        print_table(chosen, total)


def select(
    chosen: Sequence[Weights], task: str | None, commercial_ok: bool, arch: str | None
) -> list[Weights]:
    """Those that pass every filter given; with a task, by its score."""
    kept = [
        weights
        for weights in chosen
        if (not commercial_ok or weights.commercial) and arch in (None, weights.arch)
    ]
    if task is None:
        return kept
    field = TASKS[task]
    return sorted(
        (weights for weights in kept if getattr(weights, field) is not None),
        key=lambda weights: score_value(getattr(weights, field)),
        reverse=True,
    )


def score_value(score: Score | float) -> float:
    return score.value if isinstance(score, Score) else score


def everything(weights: Weights) -> dict:
    """All fields, JSON's types only; a score as {"value": ..., "method": ...}."""
    fields = asdict(weights) | {"commercial": weights.commercial}
    for name in ("coco", "ade20k"):
        if score := getattr(weights, name):
            fields[name] = score._asdict()
    return fields


def in_words(score: Score | float | None) -> str:
    if isinstance(score, Score):
        return f"{score.value:.1f} {score.method}"
    return "" if score is None else f"{score:.1f}"


def print_one(weights: Weights) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in everything(weights).items():
        if value not in (None, ""):
            text = in_words(getattr(weights, name)) if name in TASKS.values() else str(value)
            table.add_row(name, text)
    console().print(table)


def print_table(chosen: Sequence[Weights], total: int) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("net", no_wrap=True)
    table.add_column("px", justify="right")
    table.add_column("pretraining")
    table.add_column("ImageNet top-1", justify="right")
    table.add_column("COCO box AP")
    table.add_column("ADE20K mIoU")
    table.add_column("licence")
    for weights in chosen:
        table.add_row(
            weights.name,
            f"{weights.arch} {'V2' if weights.use_grn else 'V1'}",
            str(weights.resolution),
            weights.pretraining,
            *(in_words(getattr(weights, name)) for name in ("imagenet", "coco", "ade20k")),
            weights.licence,
        )
    console().print(table)
    console().print(f"{len(chosen)} of {total}; tools/zoo.py NAME tells all about one")


def console() -> Console:
    """A pipe has no width: rich would cut the table to 80 columns."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
