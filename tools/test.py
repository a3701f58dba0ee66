#!/usr/bin/env python
"""Evaluate a checkpoint: COCO box and mask AP, ADE20K mIoU, or ImageNet top-1 and top-5.

convnext test cascade_convnext_t --data data/coco         the published model of this config
convnext test cascade_convnext_t CHECKPOINT
convnext test cascade_convnext_t CHECKPOINT --tta flip
convnext test upernet_convnext_t CHECKPOINT --tta paper
convnext test upernet_convnext_t model.onnx               a file that `convnext export` wrote
"""

import json
from contextlib import nullcontext
from pathlib import Path

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import add_checkpoint, run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.deployment.comparing import figures_of_file
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.prediction.exported import is_exported
from backbones.openmmlab.segmentation.boundary import measure_boundaries
from backbones.openmmlab.training.ranks import process_group_cleanup
from backbones.openmmlab.training.runner import Runner
from backbones.weights import trusted


def main() -> None:
    parser = run_parser(__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--tta",
        metavar="PROTOCOL",
        help="augment at test time by a protocol of the config's tta: paper or mmseg for a "
        "segmentor, flip or multi_scale for a detector",
    )
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="measure boundary AP or boundary mIoU of the masks too, which takes time",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file for the metrics (default: metrics.json in the work dir)"
    )
    args = parser.parse_args()
    file = Path(args.checkpoint) if is_exported(args.checkpoint) else None
    if file is not None:
        if args.tta:
            raise InputError(f"--tta {args.tta}: an exported file predicts once", where="--tta")
        args.checkpoint = ""
    config = prepare(Options.of(args), "evaluate" if file is None else "inspect")
    check_data(config, ("test",))
    if args.boundary:
        measure_boundaries(config)
    if file is not None:
        metrics = figures_of_file(config, file, args.trust_checkpoint)
    else:
        with trusted() if args.trust_checkpoint else nullcontext():
            metrics = Runner.from_cfg(config).test()
    out = args.out or Path(config.work_dir) / "metrics.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out, json.dumps({key: float(value) for key, value in metrics.items()}, indent=2)
    )
    print(f"metrics: {out}")


if __name__ == "__main__":
    with reported_in_one_line(), process_group_cleanup():
        main()
