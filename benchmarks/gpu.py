#!/usr/bin/env python
"""Check and measure a GPU in one command of at most 25 minutes; write docs/performance-gpu.md.

python -m benchmarks.gpu --out docs/performance-gpu
python -m benchmarks.gpu --quick

First come checks: maps and gradients against float64, Triton's kernels too; if one fails, nothing
is timed. Then depthwise convolutions by layout, the speed benchmark, and detectors and segmentors
that learn 80 and 60 photographs by heart (DATA holds `coco_mini` and `ade_mini`). A part that takes
longer than its share is cut off, and the page says so. --quick checks a narrow network alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line

from .gpu_checks import depthwise_times, value_checks
from .gpu_page import page
from .overfits import SCORES, overfit
from .results import machine

REPOSITORY = Path(__file__).parents[1]
MINUTES = dict(speed=11, overfit=5)  # of each task; with the checks at most 25


def main(argv: Sequence[str] | None = None) -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="check values alone; time nothing")
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
    warnings.simplefilter("ignore")
    report: dict[str, Any] = dict(machine=machine("cuda"), notes=[])
    report["checks"] = []
    for row in value_checks(args.quick):
        report["checks"].append(row)
        print(f"{'passed' if row['passed'] else 'FAILED'}  {row['name']}", flush=True)
    failed = [row["name"] for row in report["checks"] if not row["passed"]]
    if not args.quick and not failed:
        report["depthwise"] = list(depthwise_times())
        report["speed"] = speed(report["notes"])
        report["overfits"] = overfits(args.data, report["notes"])
    text = page(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
        write_atomically(args.out.with_suffix(".md"), text)
    else:
        print(text)
    if failed:
        raise InputError(
            f"values on this GPU are wrong: {', '.join(failed)}; nothing was timed",
            code="checkpoint-mismatch",
            where=failed[0],
        )


def speed(notes: list[str]) -> dict | None:
    """Return the report of `benchmarks/speed.py` on the GPU, as far as it came."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed"
        command = [sys.executable, "-m", "benchmarks.speed", "--device", "cuda", "--out", str(out)]
        run([*command, "--peers", "mmpretrain", "timm"], MINUTES["speed"], "speed", notes)
        path = out.with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else None


def overfits(data: Path, notes: list[str]) -> dict[str, dict[str, float]]:
    """Return the scores of each task's model on the photographs that it was trained on."""
    scores = {}
    for task in SCORES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                command = overfit(task, data, Path(folder))
            except InputError as error:
                notes.append(str(error))
                continue
            run(command, MINUTES["overfit"], f"overfit of {task}", notes)
            logs = sorted(Path(folder).glob("run/*/vis_data/scalars.json"))
            rows = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
            found = [row for row in rows if SCORES[task][0] in row]
            if found:
                scores[task] = {name: found[-1][name] for name in SCORES[task]}
    return scores


def run(command: list[str], minutes: float, name: str, notes: list[str]) -> None:
    """Run a part in a process of its own, and note how it ended if not well."""
    print(f"{name}: at most {minutes} minutes", flush=True)
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, timeout=60 * minutes, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        notes.append(f"{name}: cut off after {minutes} minutes")
        return
    if done.returncode:
        notes.append(f"{name}: ended with {done.returncode}: {done.stderr.strip()[-200:]}")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
