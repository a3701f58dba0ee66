"""Define the arguments that all tools which run a config share."""

import argparse
from pathlib import Path

from .overrides import Overrides

__all__ = ["Overrides", "add_config", "add_data", "parser_for", "run_parser"]


def parser_for(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser described by a tool's module docstring: its first line, then its examples."""
    first, _, rest = (documentation or "").partition("\n")
    return argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a config, change it and give it data."""
    parser.add_argument("config", type=Path, help="config file of this suite, mmdet or mmseg")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="set config keys",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the data."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="ROOT",
        help="folder of the config's data set, or of your own data",
    )


def run_parser(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser for a tool that runs a config.

    Args:
        documentation: the tool's module docstring.
    """
    parser = parser_for(documentation)
    add_config(parser)
    add_data(parser)
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for results (default: work_dirs/ and the config's name)",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="launcher of the ranks (default: none, a single rank)",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow a checkpoint to run code while it loads",
    )
    # Older launchers pass it; newer ones set the variable that mmengine reads.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser
