#!/usr/bin/env python
"""Rewrite ConvNeXt weights in another library's layout, bit for bit.

python tools/convert.py convnext_tiny_1k_224.pth convnext_tiny_timm.safetensors --to timm
python tools/convert.py hf-hub:facebook/convnextv2-tiny-1k-224 v2_tiny.pth --to official
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.weights.checkpoints import convert
from backbones.weights.dialects import TARGETS
from backbones.weights.reading import trusted, write_checkpoint


def main() -> None:
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="file, URL, hf-hub:owner/name or timm:tag")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--to", required=True, choices=sorted(TARGETS), dest="target")
    parser.add_argument("--safetensors", action="store_true", help="default if OUT ends so")
    parser.add_argument("--prefix", help="of the backbone's names, if the file holds several")
    parser.add_argument("--wrapper", help="key of the weights, such as model_ema")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="run the code that IN holds, if it does"
    )
    parser.add_argument("--force", action="store_true", help="write over OUT if it exists")
    args = parser.parse_args()
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out}: exists already; --force writes over it")
    with trusted() if args.trust_checkpoint else nullcontext():
        tensors, line = convert(args.source, args.target, prefix=args.prefix, wrapper=args.wrapper)
    safetensors = args.safetensors or args.out.suffix == ".safetensors"
    wrapper = None if safetensors else TARGETS[args.target].wrapper
    write_checkpoint(tensors, args.out, wrapper=wrapper, safetensors=safetensors)
    print(f"{line}\n{args.out}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
