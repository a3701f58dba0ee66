#!/usr/bin/env python
"""Serve a web page that predicts the images dropped on it.

python tools/demo.py CONFIG CHECKPOINT
"""

import re
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides, parser_for
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.weights import trusted


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--max-upload",
        default="20mb",
        metavar="SIZE",
        help="maximum size of an upload (default: 20mb)",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="initial minimum score of a drawn instance (default: 0.5)",
    )
    parser.add_argument("--device", help="device of the model (default: a GPU if there is one)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help="set config keys"
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow a checkpoint to run code while it loads",
    )
    args = parser.parse_args(argv)

    if find_spec("gradio") is None:
        raise InputError(
            "the page needs gradio, which is not installed: "
            "pip install 'convnext-dense-prediction[demo]'",
            code="missing-package",
            where="gradio",
        )
    if not re.fullmatch(r"\d+ ?[kmg]?b", args.max_upload, re.IGNORECASE):
        raise InputError(
            f"--max-upload {args.max_upload}: give a size such as 20mb", where="--max-upload"
        )
    if not 0 <= args.score <= 1:
        raise InputError(f"--score {args.score}: must be from 0 to 1", where="--score")
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        predictor = Predictor(config, args.checkpoint, device=args.device)

    from backbones.openmmlab.prediction.demo_page import demo_page, serve

    title = f"{args.config.stem}, {Path(args.checkpoint).name}"
    page = demo_page(predictor, title, args.score)
    address = serve(page, args.host, args.port, args.max_upload)
    print(f"{address} (Ctrl-C stops the server)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    with reported_in_one_line():
        main()
