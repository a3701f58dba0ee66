#!/usr/bin/env python
"""Make a folder of a trained model to hand on: weights alone, config, model card, zoo entry.

python tools/publish.py CONFIG work_dirs/run/epoch_36.pth --out published/cascade_convnext_t
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import DictAction

from backbones.errors import reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.export.publishing import publish
from backbones.weights import trusted


def main() -> None:
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist yet")
    parser.add_argument("--name", help="of the model; default: the config's")
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="JSON",
        help="what tools/test.py wrote of this checkpoint; default: metrics.json beside it",
    )
    parser.add_argument(
        "--licence", help="of the weights, where those they were trained from demand no other"
    )
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run the code in a checkpoint, if it holds any",
    )
    args = parser.parse_args()
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        published = publish(
            config,
            args.checkpoint,
            args.out,
            name=args.name,
            metrics=args.metrics,
            licence=args.licence,
        )
    print(*published.lines, sep="\n")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
