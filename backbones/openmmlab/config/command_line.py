"""The arguments that every tool which runs a config has in common."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import Config, DictAction

from backbones.errors import InputError
from backbones.openmmlab.data.own_data import use_data
from backbones.weights import check_path, trusted

from .loading import load_config

MOST_BRACKETS = 1000  # mmengine's parser takes time with their square


class Overrides(DictAction):
    """mmengine's KEY=VALUE arguments, whose mistakes are said in one line."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for given in values:
            key, equals, _ = given.partition("=")
            if not equals or not key.isprintable():
                raise InputError(f"--cfg-options {given!r:.60}: give KEY=VALUE")
            try:
                if given.count("(") + given.count("[") > MOST_BRACKETS:
                    raise AssertionError
                super().__call__(parser, namespace, [given], option_string)
            except AssertionError:
                raise InputError(
                    f"--cfg-options {given:.60}: its brackets do not match, or are too many"
                ) from None


def run_parser(documentation: str) -> argparse.ArgumentParser:
    """A parser for a tool that runs a config; `documentation` is the tool's module docstring."""
    first, _, rest = documentation.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/ and the config's name")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="folder of the data set, the config's or your own"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument(
        "--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help="change the config"
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run the code in a checkpoint, if it holds any",
    )
    # Older launchers pass it; newer ones set the variable that mmengine reads.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def run_config(args: argparse.Namespace) -> Config:
    """The config that the parsed arguments ask for, checked key by key."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    for name in ("checkpoint", "init_from"):
        if given := vars(args).get(name):
            check_path(given)
    config.work_dir = str(args.work_dir or Path("work_dirs") / args.config.stem)
    config.launcher = args.launcher
    if args.data:
        with trusted() if args.trust_checkpoint else nullcontext():
            use_data(config, args.data, config.work_dir, vars(args).get("checkpoint"))
    return config
