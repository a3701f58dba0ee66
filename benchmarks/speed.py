#!/usr/bin/env python
"""Time our backbones and whole models beside their peers, in one run, on the same weights.

python -m benchmarks.speed --quick
python -m benchmarks.speed --out docs/performance
python -m benchmarks.speed --only "UperNet.*inference" --rounds 9

Candidates take turns, each round in another order; a ratio is the median over the rounds of a
candidate's time to the first one's in the same round. Before anything is timed every candidate has
to return the first one's output. Writes OUT.json, OUT.md and OUT.png; cases measured before on the
same machine and versions stay in them until they are measured again.
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

from .candidates import LIBRARIES, backbones, check, whole_models
from .cases import CASES, GPU_CASES
from .measure import others, processor_seconds, time_in_turns
from .results import earlier, machine, markdown, plot, results_of, show


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
    parser.add_argument("--peers", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
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
    measured = {}
    if args.out:
        measured = {case["case"]: case for case in earlier(args.out.with_suffix(".json"), head)}
    for case in cases:
        torch.compiler.reset()
        ways = ["eager", "fused"] if args.quick else ["eager", "channels-last", "fused"]
        if case.compiled and not args.quick:
            ways += ["compiled"] if device == "cpu" else ["max-autotune", "triton"]
        ways = args.ways or ways
        if case.is_backbone:  # T with every peer, the others with the first
            peers = args.peers[:1] if args.quick or case.network != "tiny" else args.peers
            candidates = list(backbones(case, peers, ways, device))
        else:
            candidates = list(whole_models(case, device))
        with console.status(case.name) as status:
            check(case, candidates)
            before = processor_seconds()
            time_in_turns(
                candidates,
                rounds,
                device == "cuda",
                lambda i, case=case: status.update(f"{case.name}: round {i}"),
            )
        measured[case.name] = results_of(case, candidates, others(before))
        show(measured[case.name], console)
        if args.out:
            names = [w.name for w in known if w.name in measured]
            report = dict(machine=head, cases=[measured[name] for name in names])
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
            losses = args.out.with_name("precision.json")  # by benchmarks/precision.py
            write_atomically(args.out.with_suffix(".md"), markdown(report, losses))
            plot(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    with reported_in_one_line():
        main()
