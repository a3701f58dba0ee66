#!/usr/bin/env python
"""A page to drop an image on and see what a trained model makes of it.

python tools/demo.py CONFIG CHECKPOINT
"""

import argparse
import re
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.weights.checkpoints import trusted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--max-upload", default="20mb", metavar="SIZE", help="default: 20mb")
    parser.add_argument("--score", type=float, default=0.5, help="least score to begin with")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run the code in a checkpoint, if it holds any",
    )
    args = parser.parse_args()

    if find_spec("gradio") is None:
        raise InputError(
            "the page needs gradio, which is not installed: "
            "pip install 'convnext-dense-prediction[demo]'"
        )
    if not re.fullmatch(r"\d+ ?[kmg]?b", args.max_upload, re.IGNORECASE):
        raise InputError(f"--max-upload {args.max_upload}: give a size such as 20mb")
    if not 0 <= args.score <= 1:
        raise InputError(f"--score {args.score}: give a score from 0 to 1")
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        predictor = Predictor(config, args.checkpoint, device=args.device)

    from backbones.openmmlab.prediction.demo_page import demo_page, serve

    title = f"{args.config.stem}, {Path(args.checkpoint).name}"
    page = demo_page(predictor, title, args.score)
    address = serve(page, args.host, args.port, args.max_upload)
    print(f"{address} (Ctrl-C ends it)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    with reported_in_one_line():
        main()
