#!/usr/bin/env python
"""Prepare the data that the configs name: the drawn demo set, COCO 2017 or ADE20K.

    convnext prepare-data demo      data/demo, drawn in seconds, in COCO's and in ADE20K's layout,
                                    and data/demo/classes, a folder for each shape
    convnext prepare-data coco      data/coco/{annotations,train2017,val2017}, 20.4 GB to download
    convnext prepare-data ade20k    data/ade/ADEChallengeData2016/{images,annotations}, about 1 GB

Data that exists is left alone, and an interrupted download resumes. A folder gets its final name
when it is complete. Exit status: 0 done, 2 an error that the message explains, 130 Ctrl-C.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.data.download import DATASETS, prepare_archives, reserved
from backbones.openmmlab.data.shapes import prepare_demo


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    demo = commands.add_parser("demo", help="draw the demo set")
    demo.add_argument(
        "--size", type=int, default=160, help="width and height in pixels (default: 160)"
    )
    demo.add_argument(
        "--train", type=int, default=320, help="number of training images (default: 320)"
    )
    demo.add_argument(
        "--val", type=int, default=64, help="number of validation images (default: 64)"
    )
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    for name in DATASETS:
        command = commands.add_parser(name, help="download, check and unpack")
        command.add_argument("--mirror", help="URL of a folder with the same zip files")
    for command in commands.choices.values():
        command.add_argument(
            "--root", type=Path, default=Path("data"), help="parent folder (default: data)"
        )
    args = parser.parse_args(argv)
    for name, least in (("size", 64), ("train", 1), ("val", 1), ("seed", 0)):
        if getattr(args, name, least) < least:
            parser.error(f"--{name} {getattr(args, name)} is less than {least}")
    mirror = getattr(args, "mirror", None)
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror {mirror} does not start with http:// or https://")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        with reserved(args.root):
            if args.dataset == "demo":
                prepare_demo(args.root, args.size, args.train, args.val, args.seed)
                return
            archives = DATASETS[args.dataset]
            if args.mirror:
                mirror = args.mirror.rstrip("/")
                archives = tuple(replace(a, url=f"{mirror}/{a.name}") for a in archives)
            prepare_archives(args.root, archives)
    except OSError as error:
        place = error.filename or args.root
        raise InputError(
            f"{place}: {error.strerror or error}", code="write-failed", where=place
        ) from error


if __name__ == "__main__":
    with reported_in_one_line("run again to resume"):
        main()
