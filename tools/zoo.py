#!/usr/bin/env python
"""List published ConvNeXt weights with their licences and scores, or show all about one.

convnext zoo --task segmentation --commercial-ok
convnext zoo convnextv2_base_1k_224_fcmae
convnext zoo --published FOLDER
convnext zoo --trained
Scores are published ones, reached by the method beside them; scores of different methods cannot be
compared. The `source` is what a config's `checkpoint` takes.
"""

import argparse
import json
from collections.abc import Sequence

from backbones.errors import InputError, reported_in_one_line
from backbones.weights import TRAINED, ZOO, find, find_trained, published_in
from backbones.weights.listing import (
    TASKS,
    described,
    everything,
    print_one,
    print_table,
    print_trained,
    select,
)


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
        "--trained",
        action="store_true",
        help="list the published detectors and segmentors, which convnext predict, test and demo "
        "load by the name of their config",
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
    trained = find_trained(args.name) if args.name else None
    if args.trained and args.name and not trained:
        raise InputError(
            f"{args.name}: no trained model of this name; --trained alone lists them",
            code="unknown-name",
            where=args.name,
        )
    if args.trained or trained:
        models = [trained] if trained else TRAINED
        if args.json:
            print(json.dumps([described(model) for model in models], indent=1))
        else:
            print_trained(models)
        return
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
