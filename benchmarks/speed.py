#!/usr/bin/env python
"""Time our backbones and whole models beside their peers, in one run, on the same weights.

python -m benchmarks.speed --quick
python -m benchmarks.speed --out docs/performance
python -m benchmarks.speed --only "UperNet.*inference" --rounds 9

Each candidate runs in a process of its own, in turns with ours; a ratio is the median over the
rounds of its time to ours. Before it is timed it has to return our output. onnxruntime and OpenVINO
run files that are exported from ours. Writes OUT.json, OUT.md and OUT.png after every case; cases
measured before stay in them, by machine and versions, until they are measured again.
"""

import argparse
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line

from .candidates import LIBRARIES, candidates_of
from .cases import CASES, GPU_CASES
from .processes import time_in_turns
from .results import add, machine, markdown, plot, read_report, results_of, show
from .runtimes import RUNTIMES


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="run a few quick cases (minutes on two cores)"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="run the cases whose name matches"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument(
        "--rounds", type=int, help="timing rounds of each case (default: 7, fewer for slow cases)"
    )
    peers = (*LIBRARIES, *RUNTIMES)
    parser.add_argument("--peers", nargs="+", choices=peers, default=list(peers))
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["eager", "channels-last", "compiled", "max-autotune", "fused", "triton"],
        help="ways to run the backbones",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="write OUT.json, OUT.md and OUT.png (default: print only)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    known = GPU_CASES if device == "cuda" else CASES
    cases = [w for w in known if re.search(args.only, w.name, re.I) and (w.quick or not args.quick)]
    if not cases:
        raise InputError(f"--only {args.only!r}: matches no case; --list lists them")
    if args.list:
        print("\n".join(w.name for w in cases))
        return
    rounds = args.rounds or (3 if args.quick else None)
    warnings.simplefilter("ignore")

    console = Console()
    head = machine(device)
    for case in cases:
        candidates = candidates_of(case, args.peers, args.ways, args.quick, device)
        with console.status(case.name) as status:
            disturbed = time_in_turns(
                case,
                candidates,
                rounds,
                torch.get_num_threads(),
                device == "cuda",
                lambda name, case=case: status.update(f"{case.name}: {name}"),
            )
        result = results_of(case, candidates, disturbed)
        show(result, console)
        if args.out:
            report = read_report(args.out.with_suffix(".json"))
            add(report, head, result, [each.name for each in known])
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
            losses = args.out.with_name("precision.json")  # by benchmarks/precision.py
            write_atomically(args.out.with_suffix(".md"), markdown(report, losses))
            plot(report["machines"][0], args.out.with_suffix(".png"))


if __name__ == "__main__":
    with reported_in_one_line():
        main()
