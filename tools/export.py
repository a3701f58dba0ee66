#!/usr/bin/env python
"""Export a trained model to ONNX or torch.export and compare the file with it on real images.

convnext export CONFIG CHECKPOINT --to onnx
convnext export CONFIG CHECKPOINT --to onnx --fp16 --images 50
convnext export CONFIG CHECKPOINT --to torch --part backbone --out backbone.pt2
The file takes images (N, 3, H, W) as OpenCV reads them, in float32; docs/export.md describes its
outputs and their names.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

from backbones.errors import reported_in_one_line
from backbones.packages import require
from backbones.weights import trusted


def main() -> None:
    require("tools/export.py", "cv2")
    # Not at the top: without OpenCV this would end in a traceback.
    from backbones.openmmlab.config.command_line import add_checkpoint, run_parser
    from backbones.openmmlab.config.prepare import Options, prepare
    from backbones.openmmlab.doctor.checks import check_data
    from backbones.openmmlab.export.files import OPSET, TARGETS, check_output, export_name
    from backbones.openmmlab.export.graphs import PARTS

    parser = run_parser(__doc__ or "")
    add_checkpoint(parser)
    add = parser.add_argument
    add("--to", choices=TARGETS, required=True, dest="target", help="kind of file to write")
    add("--part", choices=PARTS, default="model", help="what to export; default: %(default)s")
    add("--out", type=Path, help="file to write; default: the config's name, in this folder")
    add("--logits", action="store_true", help="return a segmentor's logits instead of labels")
    add("--fp16", action="store_true", help="use half precision except in norms and RoIAlign")
    compared = "number of test images to compare on; default: %(default)s"
    add("--images", type=int, default=8, help=compared)
    add(
        "--tolerance",
        type=float,
        help="maximum relative difference, and maximum change of AP or mIoU on a scale of 1; "
        "default: 0.001; 0.02 with --fp16 and for OpenVINO, whose weights are in half precision",
    )
    add("--opset", type=int, default=OPSET, help="ONNX opset version; default: %(default)s")
    add("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args()
    target = TARGETS[args.target]
    require(f"--to {args.target}", *target.packages)
    name = export_name(args.config.stem, args.part, args.logits, args.fp16)
    out = args.out or Path(name + target.suffix)
    check_output(out, args.target, args.force)
    options = Options.of(args)
    config = prepare(options, "inspect")
    check_data(config, ("test",))

    from backbones.openmmlab.export.exporting import export

    with trusted() if args.trust_checkpoint else nullcontext():
        agreement, report = export(
            config,
            cast(str, options.checkpoint),
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
