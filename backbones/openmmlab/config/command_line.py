"""Define the arguments that all tools which run a config share."""

import argparse
from pathlib import Path

from .overrides import Overrides

__all__ = [
    "CONFIG_HELP",
    "Overrides",
    "add_checkpoint",
    "add_config",
    "add_data",
    "add_predictor",
    "add_timing",
    "parser_for",
    "run_parser",
]

CONFIG_HELP = "name of a config (convnext configs lists them) or a config file"


def parser_for(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser described by a tool's module docstring: its first line, then its examples."""
    first, _, rest = (documentation or "").partition("\n")
    return argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a config, change it and give it data."""
    parser.add_argument("config", type=Path, help=CONFIG_HELP)
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


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint of a model, optional for a config with a published model."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="weights of the whole model: a file, URL, hf-hub: name or the name of a published "
        "model (default: the one published for this config; convnext zoo --trained lists them)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of loading a checkpoint."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow a checkpoint to run code while it loads",
    )
    parser.add_argument(
        "--offline", action="store_true", help="download nothing; use cached files only"
    )


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a tool that predicts."""
    parser.add_argument("--device", help="device of the model (default: a GPU if there is one)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help="set config keys"
    )
    add_loading(parser)


def add_timing(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the arguments of a tool that times models, with its default number of rounds."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="number of timed rounds; default: %(default)s"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of each runtime (default: as many as PyTorch takes)"
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
    add_loading(parser)
    # Older launchers pass it; newer ones set the variable that mmengine reads.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser
