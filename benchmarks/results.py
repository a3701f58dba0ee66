"""Show the results of a case as a table, as Markdown and as a figure."""

import json
import platform
import statistics
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import atomic_path
from backbones.openmmlab.deployment.timing import quartiles
from backbones.openmmlab.processor import processor_flags, processor_name

from .candidates import Candidate
from .cases import Case

# Linux's names of the instructions that decide how fast a processor is: x86's, then ARM's.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def results_of(case: Case, candidates: list[Candidate], disturbed: float) -> dict:
    first = candidates[0]
    rows = []
    for candidate in candidates:
        ratios = [a / b for a, b in zip(candidate.seconds, first.seconds, strict=True)]
        low, median, high = quartiles(candidate.seconds)
        ratio_low, ratio, ratio_high = quartiles(ratios)
        rows.append(
            dict(
                name=candidate.name,
                median_ms=median * 1e3,
                quartiles_ms=[low * 1e3, high * 1e3],
                images_per_s=case.size[0] / median,
                ratio=ratio,
                ratio_quartiles=[ratio_low, ratio_high],
                peak_mib=candidate.peak_mib,
                difference=candidate.difference,
            )
        )
    rounds = len(first.seconds)
    return dict(case=case.name, **asdict(case), rounds=rounds, others=disturbed, candidates=rows)


def machine(device: str) -> dict:
    packages = ("torch", "onedl-mmdetection", "onedl-mmsegmentation", "onedl-mmpretrain", "timm")
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        flags=processor_flags(FLAGS),
        python=platform.python_version(),
        versions={p: version(p) for p in (*packages, "torchvision", "transformers")},
    )


def earlier(path: Path, head: dict) -> list[dict]:
    """Return the cases of an earlier report of the same machine and versions."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    return report["cases"] if report["machine"] == head else []


def disturbance(share: float | None) -> str:
    if share is None:  # a report from before this was recorded
        return "the machine had other work"
    return f"{share:.0%} of the processor time went to other processes"


def markdown(report: dict, losses: Path) -> str:
    head = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
    lines = [
        "# Performance, measured",
        "",
        "Made by `benchmarks/speed.py --out`, some cases alone with `--only`: candidates",
        "take turns, and a ratio is the median over rounds of its time to the first candidate's",
        "in the same round, with its quartiles.",
        "Memory is what the case takes beyond the model's own. Difference is the largest of",
        "the output from the first candidate's: of maps of magnitude 1 to 10, or the share of",
        "pixels or boxes that differ. bfloat16 is autocast's of the device named below; what",
        "CUDA's does otherwise stands in [gpu.md](gpu.md).",
        "",
        f"{head['device']}, {head['threads']} threads, {head['instructions']}; processor flags: "
        f"{', '.join(head['flags']) or 'not known'}. Python {head['python']}, {versions}.",
    ]
    for result in report["cases"]:
        lines += [
            "",
            f"## {result['case']}",
            "",
            f"{result['rounds']} rounds; {disturbance(result['others'])}.",
            "",
            "| | ms | images/s | ratio | quartiles | peak MiB | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["candidates"]:
            low, high = row["ratio_quartiles"]
            lines.append(
                f"| {row['name']} | {row['median_ms']:.1f} | {row['images_per_s']:.2f} | "
                f"{row['ratio']:.3f} | {low:.3f}-{high:.3f} | {row['peak_mib']:.0f} | "
                f"{row['difference']:.1e} |"
            )
    if losses.exists():
        lines += [
            "",
            "## Training in lower precision",
            "",
            f"![losses of the first steps]({losses.with_suffix('.png').name})",
            "",
            "By `benchmarks/precision.py`: the first steps from the same weights and images; mean",
            "loss of the last 20 for each seed.",
            "",
            "| config | precision | seeds |",
            "|---|---|---|",
        ]
        for config, runs in json.loads(losses.read_text()).items():
            for precision, seeds in runs.items():
                means = ", ".join(f"{statistics.fmean(values[-20:]):.3f}" for values in seeds)
                lines.append(f"| {config} | {precision} | {means} |")
    return "\n".join(lines) + "\n"


def plot(report: dict, path: Path) -> None:
    """Draw the ratio of every candidate as a bar, grouped by case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = report["cases"]
    rows = sum(len(w["candidates"]) for w in cases) + len(cases)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.24 * rows))
    y, ticks, labels = 0, [], []
    for case in cases:
        axes.text(0, y, case["case"], va="center", fontsize=8, fontweight="bold")
        for row in case["candidates"]:
            y += 1
            ours = row["name"].startswith("ours")
            axes.barh(y, row["ratio"], color="#2a78b5" if ours else "#c4c4c4")
            axes.text(row["ratio"] + 0.01, y, f"{row['ratio']:.2f}", va="center", fontsize=7)
            ticks.append(y)
            labels.append(row["name"])
        y += 1
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylim(y, -1)
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_xlabel("time, as a ratio to the first of its group (shorter is faster)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=150)


def show(result: dict, console: Console) -> None:
    table = Table(title=result["case"], title_justify="left")
    for column in ("", "ms", "images/s", "ratio", "quartiles", "peak MiB", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for row in result["candidates"]:
        low, high = row["ratio_quartiles"]
        table.add_row(
            row["name"],
            f"{row['median_ms']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['peak_mib']:.0f}",
            f"{row['difference']:.1e}",
            style="bold" if row["name"].startswith("ours") else None,
        )
    console.print(table)
