#!/usr/bin/env python
"""Rewrite ConvNeXt weights in the layout of another library, bit for bit.

python tools/convert.py convnext_tiny_1k_224.pth convnext_tiny_timm.safetensors --to timm
python tools/convert.py hf-hub:facebook/convnextv2-tiny-1k-224 v2_tiny.pth --to official
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.weights import TARGETS, convert, trusted, write_checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="IN", help="weights to read: file, URL, hf-hub:owner/name or timm:tag"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    parser.add_argument(
        "--to", required=True, choices=sorted(TARGETS), dest="target", help="layout to write"
    )
    parser.add_argument(
        "--safetensors",
        action="store_true",
        help="write safetensors (default if OUT ends in .safetensors)",
    )
    parser.add_argument(
        "--prefix",
        help="prefix of the backbone's parameter names, if the file holds several networks",
    )
    parser.add_argument(
        "--wrapper", help="key under which the file holds the weights, such as model_ema"
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="allow IN to run code while it loads"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.force:
        raise InputError(
            f"{args.out}: exists already; --force overwrites it",
            code="write-failed",
            where=args.out,
        )
    with trusted() if args.trust_checkpoint else nullcontext():
        tensors, line = convert(args.source, args.target, prefix=args.prefix, wrapper=args.wrapper)
    safetensors = args.safetensors or args.out.suffix == ".safetensors"
    wrapper = None if safetensors else TARGETS[args.target].wrapper
    write_checkpoint(tensors, args.out, wrapper=wrapper, safetensors=safetensors)
    print(f"{line}\n{args.out}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
