#!/usr/bin/env python
"""List published ConvNeXt weights with their licences and scores, or show all about one.

python tools/zoo.py --task segmentation --commercial-ok
python tools/zoo.py convnextv2_base_1k_224_fcmae
python tools/zoo.py --published FOLDER
Scores are published ones, reached by the method beside them; scores of different methods cannot be
compared. The `source` is what a config's `checkpoint` takes.
"""

import argparse
import json
from collections.abc import Sequence

from backbones.errors import reported_in_one_line
from backbones.weights import ZOO, find, published_in
from backbones.weights.listing import TASKS, everything, print_one, print_table, select


def main(argv: Sequence[str] | None = None) -> None:
    description, _, examples = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="show the details of the weights with this name, source or folder",
    )
    parser.add_argument(
        "--published",
        metavar="FOLDER",
        help="list the weights that tools/publish.py wrote to this folder",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="only weights with a published score in this task, the best first",
    )
    parser.add_argument(
        "--commercial-ok",
        action="store_true",
        help="only weights whose licence permits commercial use",
    )
    parser.add_argument(
        "--arch",
        choices=sorted({weights.arch for weights in ZOO}),
        help="only weights of this size",
    )
    parser.add_argument("--json", action="store_true", help="print all fields as JSON")
    args = parser.parse_args(argv)
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


if __name__ == "__main__":
    with reported_in_one_line():
        main()
