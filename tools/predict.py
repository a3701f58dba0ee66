#!/usr/bin/env python
"""Predict images and videos with a trained model; draw the results and write them as data.

convnext predict cascade_convnext_t photo.jpg
convnext predict CONFIG CHECKPOINT photo.jpg folder/ 'scans/**/*.tif' clip.mp4
convnext predict CONFIG CHECKPOINT aerial.tif --tile 1024
convnext predict model.onnx photo.jpg
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
from PIL import Image

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import CONFIG_HELP, add_predictor, parser_for
from backbones.openmmlab.config.names import published_model
from backbones.openmmlab.prediction.batches import predict_files
from backbones.openmmlab.prediction.exported import is_exported
from backbones.openmmlab.prediction.inputs import find_files, split_checkpoint
from backbones.openmmlab.prediction.predictions import PredictionFiles
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.tiles import TiledPredictor, check_tiling
from backbones.weights import trusted, work_offline


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("config", type=Path, help=CONFIG_HELP)
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, videos, folders of them, or patterns; optionally the weights of the whole "
        "model before them (default: those published for this config)",
    )
    written = "output folder (default: predictions)"
    add("--out", type=Path, default=Path("predictions"), help=written)
    add("--score", type=float, default=0.5, help="minimum score of a drawn instance (default: 0.5)")
    add("--batch-size", type=int, default=1, help="images, frames or tiles per batch (default: 1)")
    square = "predict larger images in square tiles of this side"
    add("--tile", type=int, metavar="PIXELS", help=square)
    shared = "overlap of neighbouring tiles (default: TILE / 4)"
    add("--overlap", type=int, metavar="PIXELS", help=shared)
    add_predictor(parser)
    args = parser.parse_args(argv)

    if args.batch_size < 1:
        raise InputError(
            f"--batch-size {args.batch_size}: must be at least 1", where="--batch-size"
        )
    check_tiling(args.tile, args.overlap)
    Image.MAX_IMAGE_PIXELS = None  # large images are expected here
    cv2.setLogLevel(0)  # files that cannot be read are listed at the end
    if args.offline:
        work_offline()
    checkpoint, named = split_checkpoint(args.paths)
    paths = find_files(named)
    if is_exported(args.config):
        if checkpoint or args.cfg_options:
            raise InputError(
                f"{args.config}: an exported file takes no checkpoint and no --cfg-options",
                where=args.config,
            )
        predictor = Predictor(args.config, device=args.device)
    else:
        checkpoint = checkpoint or published_model(args.config).name
        config = load_config(args.config, args.cfg_options)
        with trusted() if args.trust_checkpoint else nullcontext():
            predictor = Predictor(config, checkpoint, device=args.device)
    tiled = None
    if args.tile is not None:
        tiled = TiledPredictor(predictor, args.tile, args.overlap, args.batch_size)
    files = PredictionFiles(args.out, predictor, args.score)
    refused = predict_files(predictor, tiled, args.batch_size, files, paths)
    done = len(paths) - len(refused)
    if done:
        drawn = [args.out / kind for kind in ("pictures", "videos") if (args.out / kind).is_dir()]
        print(f"{done} of {len(paths)} files: {', '.join(map(str, drawn or [args.out]))}")
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
