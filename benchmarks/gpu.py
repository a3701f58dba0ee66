#!/usr/bin/env python
"""Check and measure a GPU in one command of at most 25 minutes; write docs/performance-gpu.md.

python -m benchmarks.gpu --out docs/performance-gpu
python -m benchmarks.gpu --out docs/performance-gpu --parts training
python -m benchmarks.gpu --quick

First come checks: maps and gradients against float64, Triton's kernels too; if one fails, nothing
is timed. Then depthwise convolutions by layout, whole models beside OpenMMLab's, backbones beside
timm's and mmpretrain's, and detectors and segmentors that learn 80 and 60 photographs by heart
(DATA holds `coco_mini` and `ade_mini`; the pretrained backbone is downloaded). Each part is a
process of its own; one that takes longer than its share is cut off. The page is written after each
part and names what is missing; --parts runs these again, faster where compiled kernels are cached,
and keeps the others of the same machine. --quick checks a narrow network alone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line

from .gpu_page import page
from .overfits import SCORES, overfit
from .results import machine

REPOSITORY = Path(__file__).parents[1]
MINUTES = 24.5  # of all parts; the last half minute is for ending one that is cut off
# The most minutes of each part, in this order. Guesses: no GPU has run them yet.
PARTS = dict(values=3.0, depthwise=2.0, models=4.0, inference=4.0, training=5.5)
PARTS |= dict(detection=3.0, segmentation=3.0)
CASES = dict(models="UperNet|Cascade", inference="ConvNeXt.* inf", training="ConvNeXt.* train")


def main(argv: Sequence[str] | None = None) -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="check values alone; time nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="run these (default: all)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        default=REPOSITORY.parent / "shared" / "data",
        help="folder of photographs to overfit (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json (default: print only)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError(
            "PyTorch sees no GPU here: there is nothing to check or to measure",
            code="unsupported",
            where="cuda",
        )
    report = earlier(args.out, machine("cuda")) if args.parts else dict(machine=machine("cuda"))
    report.setdefault("notes", {})
    parts = ["values"] if args.quick else args.parts or list(PARTS)
    if "values" not in parts and (report.get("quick", True) or wrong_values(report)):
        parts = ["values", *parts]
    end = time.monotonic() + 60 * MINUTES
    for part in sorted(parts, key=list(PARTS).index):
        minutes = min(PARTS[part], (end - time.monotonic()) / 60)
        print(f"{part}: at most {minutes:.1f} minutes", flush=True)
        report["notes"].pop(part, None)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            note = measure(part, report, Path(folder), args, minutes)
        if part == "values":
            report["quick"] = args.quick
        if note:
            report["notes"][part] = note
            print(f"{part}: {note}", flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
            write_atomically(args.out.with_suffix(".md"), page(report))
        if part == "values" and (error := wrong_values(report)):
            raise error
    if not args.out:
        print(page(report))


def earlier(out: Path | None, head: dict) -> dict[str, Any]:
    """Return an earlier report of the same machine and versions, or an empty one."""
    path = None if out is None else out.with_suffix(".json")
    if path is not None and path.exists():
        report = json.loads(path.read_text())
        if report["machine"] == head:
            return report
    return dict(machine=head)


def measure(
    part: str, report: dict[str, Any], folder: Path, args: argparse.Namespace, minutes: float
) -> str | None:
    """Run a part, put what it found into the report; return why it did not finish, or None."""
    if part in ("values", "depthwise"):
        rows = folder / "rows.jsonl"
        command = [sys.executable, "-m", "benchmarks.gpu_checks", part, str(rows)]
        note = run([*command, "--quick"] if args.quick else command, minutes)
        report[part] = json_lines(rows)
    elif part in CASES:
        out = (folder / "speed").with_suffix(".json")
        if report.get("speed"):
            out.write_text(json.dumps(report["speed"]))
        command = [sys.executable, "-m", "benchmarks.speed", "--device", "cuda", "--out", str(out)]
        command += ["--only", CASES[part], "--peers", "mmpretrain", "timm"]
        note = run(command, minutes)
        if out.exists():
            report["speed"] = json.loads(out.read_text())
    else:
        try:
            command = overfit(part, args.data, folder)
        except InputError as error:
            return str(error)
        note = run(command, minutes)
        rows = [
            r
            for path in sorted(folder.glob("run/*/vis_data/scalars.json"))
            for r in json_lines(path)
        ]
        found = [row for row in rows if SCORES[part][0] in row]
        if found:
            report.setdefault("overfits", {})[part] = {
                name: found[-1][name] for name in SCORES[part]
            }
    return note


def json_lines(path: Path) -> list[dict]:
    """Return the rows of a file, without a last one that was cut off."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run(command: list[str], minutes: float) -> str | None:
    """Run a part, and end it with its workers after so many minutes.

    Returns:
        why it did not finish, or None.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=errors, start_new_session=True)
        try:
            process.wait(max(0.0, 60 * minutes))
        except subprocess.TimeoutExpired:
            return f"cut off after {minutes:.1f} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        last = errors.read().strip().rpartition("\n")[2]
    return f"ended with status {process.returncode}: {last[-200:]}" if process.returncode else None


def wrong_values(report: dict[str, Any]) -> InputError | None:
    """Return what is wrong with the values; None if all were compared with float64 and passed."""
    failed = [row["name"] for row in report.get("values", ()) if not row["passed"]]
    if failed:
        text = f"values on this GPU are wrong: {', '.join(failed)}; nothing was timed"
        return InputError(text, code="checkpoint-mismatch", where=failed[0])
    if note := report["notes"].get("values"):
        return InputError(f"values: {note}; nothing was timed", code="unsupported", where="values")
    return None


if __name__ == "__main__":
    with reported_in_one_line():
        main()
