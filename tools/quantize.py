#!/usr/bin/env python
"""Quantise an exported file to INT8 as far as its scores allow: ONNX, or OpenVINO's by NNCF.

convnext quantize CONFIG model.onnx
convnext quantize CONFIG model.xml
convnext quantize CONFIG model.onnx --for tensorrt
convnext quantize CONFIG model.onnx --data ROOT --max-drop 0.002 --out model-int8.onnx
Linears and the convolutions of necks and heads become INT8, calibrated on training images. The
most sensitive ones return to float until no score on the test images has lost more than --max-drop.
Nothing is written where INT8 is not faster than float on this machine.
"""

from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import add_timing, run_parser
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.deployment.quantizing import quantize, report_lines
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.export.files import check_output
from backbones.openmmlab.tasks import task_of
from backbones.packages import require

PACKAGES = {".onnx": ("onnx", "onnxruntime"), ".xml": ("openvino", "nncf")}


def main() -> None:
    parser = run_parser(__doc__)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help=".onnx or .xml of a whole model, in float32")
    add("--out", type=Path, help="file to write (default: FILE with -int8 before the suffix)")
    add(
        "--max-drop",
        type=float,
        default=0.005,
        help="largest loss of box AP, mask AP, mIoU or top-1 on a scale of 1; default: %(default)s",
    )
    add(
        "--calibration",
        type=int,
        default=64,
        metavar="N",
        help="number of training images that ranges are measured on; default: %(default)s",
    )
    add("--images", type=int, metavar="N", help="number of test images (default: all)")
    add_timing(parser, rounds=10)
    add(
        "--keep-slower",
        action="store_true",
        help="write the file for another machine if it is not faster on this one",
    )
    add(
        "--for",
        choices=("tensorrt",),
        dest="purpose",
        help="follow TensorRT's rules for INT8 in ONNX; nothing is timed then",
    )
    add("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args()
    suffix = args.file.suffix
    if suffix not in PACKAGES:
        raise InputError(
            f"{args.file}: INT8 files are made from {' and '.join(PACKAGES)}, which "
            "`convnext export` writes",
            where=args.file,
        )
    if args.purpose == "tensorrt" and suffix != ".onnx":
        raise InputError(f"{args.file}: --for tensorrt takes an .onnx file", where=args.file)
    require(f"INT8 of {suffix}", *PACKAGES[suffix])
    out = args.out or args.file.with_name(f"{args.file.stem}-int8{suffix}")
    check_output(out, "onnx" if suffix == ".onnx" else "openvino", args.force)
    config = prepare(Options.of(args), "inspect")
    check_data(config, ("train", "test"))
    report = quantize(
        config,
        args.file,
        out,
        max_drop=args.max_drop,
        calibration=args.calibration,
        images=args.images,
        rounds=args.rounds,
        threads=args.threads,
        keep_slower=args.keep_slower,
        tensorrt=args.purpose == "tensorrt",
    )
    print(*report_lines(report, task_of(config)), sep="\n")
    print(f"{out}\n{out.with_suffix('.json')}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
