#!/usr/bin/env python
"""Predict images and videos with a trained model; draw the results and write them as data.

python tools/predict.py CONFIG CHECKPOINT photo.jpg folder/ 'scans/**/*.tif' clip.mp4
python tools/predict.py CONFIG CHECKPOINT aerial.tif --tile 1024
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
from PIL import Image

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides, parser_for
from backbones.openmmlab.prediction.batches import predict_files
from backbones.openmmlab.prediction.inputs import find_files
from backbones.openmmlab.prediction.predictions import PredictionFiles
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.tiles import TiledPredictor, check_tiling
from backbones.weights import trusted


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, videos, folders of them, or patterns"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="output folder (default: predictions)"
    )
    parser.add_argument(
        "--score", type=float, default=0.5, help="minimum score of a drawn instance (default: 0.5)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images, frames or tiles per batch (default: 1)"
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="predict larger images in square tiles of this side",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="overlap of neighbouring tiles (default: TILE / 4)",
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

    if args.batch_size < 1:
        raise InputError(
            f"--batch-size {args.batch_size}: must be at least 1", where="--batch-size"
        )
    check_tiling(args.tile, args.overlap)
    Image.MAX_IMAGE_PIXELS = None  # large images are expected here
    cv2.setLogLevel(0)  # files that cannot be read are listed at the end
    paths = find_files(args.paths)
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        predictor = Predictor(config, args.checkpoint, device=args.device)
    tiled = None
    if args.tile is not None:
        tiled = TiledPredictor(predictor, args.tile, args.overlap, args.batch_size)
    files = PredictionFiles(args.out, predictor, args.score)
    refused = predict_files(predictor, tiled, args.batch_size, files, paths)
    done = len(paths) - len(refused)
    if done:
        where = [args.out / kind for kind in ("pictures", "videos") if (args.out / kind).is_dir()]
        print(f"{done} of {len(paths)} files: {', '.join(map(str, where))}")
    if len(refused) > 1:
        print(*refused, sep="\n", file=sys.stderr)
        raise InputError(
            f"{len(refused)} of {len(paths)} files were not predicted, see above", code="bad-image"
        )
    if refused:
        raise InputError(refused[0], code="bad-image")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
