#!/usr/bin/env python
"""Export a trained model to ONNX or torch.export, held against the model on real images.

python tools/export.py CONFIG CHECKPOINT --to onnx
python tools/export.py CONFIG CHECKPOINT --to onnx --fp16 --images 50
python tools/export.py CONFIG CHECKPOINT --to torch --part backbone --out backbone.pt2
Input: images (N, 3, H, W) as OpenCV reads them, float32; docs/export.md has outputs and names.
"""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.packages import require
from backbones.weights import trusted


def main() -> None:
    require("tools/export.py", "cv2")
    # Not at the top: without OpenCV this would end in a traceback.
    from backbones.openmmlab.config.command_line import run_config, run_parser
    from backbones.openmmlab.doctor.examination import check_data
    from backbones.openmmlab.export.files import OPSET, PACKAGES, SUFFIXES
    from backbones.openmmlab.export.graphs import PARTS

    parser = run_parser(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--to", choices=SUFFIXES, required=True, dest="target")
    parser.add_argument("--part", choices=PARTS, default="model")
    parser.add_argument("--out", type=Path, help="default: the config's name, in this folder")
    parser.add_argument("--logits", action="store_true", help="of a segmentor, not labels")
    parser.add_argument("--fp16", action="store_true", help="half precision but for norms and RoIs")
    parser.add_argument("--images", type=int, default=8, help="to compare on; default: %(default)s")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference and change of AP or mIoU (of 1) that is accepted; "
        "default: 0.001, with --fp16 0.02",
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="write over OUT if it exists")
    args = parser.parse_args()
    require(f"--to {args.target}", *PACKAGES[args.target])
    suffix = SUFFIXES[args.target]
    out = args.out or Path(default_name(args) + suffix)
    if out.suffix != suffix:
        raise InputError(f"--out {out}: --to {args.target} writes files that end in {suffix}")
    if out.exists() and not args.force:
        raise InputError(f"{out}: exists already; --force writes over it")
    config = run_config(args)
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


def default_name(args: Namespace) -> str:
    parts = [args.config.stem]
    parts += [args.part] if args.part != "model" else []
    parts += ["logits"] * args.logits + ["fp16"] * args.fp16
    return "-".join(parts)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
