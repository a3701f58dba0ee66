#!/usr/bin/env python
"""Export a trained model to ONNX or torch.export and compare the file with it on real images.

python tools/export.py CONFIG CHECKPOINT --to onnx
python tools/export.py CONFIG CHECKPOINT --to onnx --fp16 --images 50
python tools/export.py CONFIG CHECKPOINT --to torch --part backbone --out backbone.pt2
The file takes images (N, 3, H, W) as OpenCV reads them, in float32; docs/export.md describes its
outputs and their names.
"""

from contextlib import nullcontext
from pathlib import Path

from backbones.errors import reported_in_one_line
from backbones.packages import require
from backbones.weights import trusted


def main() -> None:
    require("tools/export.py", "cv2")
    # Not at the top: without OpenCV this would end in a traceback.
    from backbones.openmmlab.config.command_line import run_parser
    from backbones.openmmlab.config.prepare import Options, prepare
    from backbones.openmmlab.doctor.checks import check_data
    from backbones.openmmlab.export.files import OPSET, TARGETS, check_output, export_name
    from backbones.openmmlab.export.graphs import PARTS

    parser = run_parser(__doc__ or "")
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--to", choices=TARGETS, required=True, dest="target", help="kind of file to write"
    )
    parser.add_argument(
        "--part", choices=PARTS, default="model", help="what to export; default: %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, help="file to write; default: the config's name, in this folder"
    )
    parser.add_argument(
        "--logits", action="store_true", help="return a segmentor's logits instead of labels"
    )
    parser.add_argument(
        "--fp16", action="store_true", help="use half precision except in norms and RoIAlign"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=8,
        help="number of test images to compare on; default: %(default)s",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="maximum relative difference, and maximum change of AP or mIoU on a scale of 1; "
        "default: 0.001, with --fp16 0.02",
    )
    parser.add_argument(
        "--opset", type=int, default=OPSET, help="ONNX opset version; default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args()
    target = TARGETS[args.target]
    require(f"--to {args.target}", *target.packages)
    name = export_name(args.config.stem, args.part, args.logits, args.fp16)
    out = args.out or Path(name + target.suffix)
    check_output(out, args.target, args.force)
    config = prepare(Options.of(args), "inspect")
    check_data(config, ("test",))

    from backbones.openmmlab.export.exporting import export

    with trusted() if args.trust_checkpoint else nullcontext():
        agreement, report = export(
            config,
            args.checkpoint,
            out,
            args.target,
            part=args.part,
            logits=args.logits,
            fp16=args.fp16,
            images=args.images,
            tolerance=args.tolerance,
            opset=args.opset,
        )
    print(*agreement.lines(), sep="\n")
    if "activations_enlarged" in report:
        print(f"  finite with activations {report['activations_enlarged']:g} times as large")
    print(f"{out}\n{out.with_suffix('.json')}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
