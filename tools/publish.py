#!/usr/bin/env python
"""Publish a trained model as a folder of weights, config, model card and zoo entry.

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
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="config that the model was trained with")
    parser.add_argument("checkpoint", help="checkpoint to publish")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to create; must not exist yet",
    )
    parser.add_argument("--name", help="name of the model; default: the config's")
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="JSON",
        help="what tools/test.py wrote for this checkpoint; default: metrics.json beside it",
    )
    parser.add_argument(
        "--licence", help="licence of the weights, unless their pretrained weights require another"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="set config keys",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow the checkpoint to execute code while it loads",
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
