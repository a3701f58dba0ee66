"""Show the results of a case as a table, as Markdown and as a figure."""

import json
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import atomic_path
from backbones.openmmlab.deployment.timing import quartiles
from backbones.openmmlab.processor import processor_flags, processor_name
from backbones.ops.caches import own_caches_bytes, shared_cache_bytes

from .candidates import Candidate
from .cases import Case
from .runtimes import RUNTIMES

# Linux's names of the instructions that decide how fast a processor is: x86's, then ARM's.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_vp2intersect")
FLAGS += ("amx_bf16", "asimd", "sve", "bf16")


def results_of(case: Case, candidates: list[Candidate], disturbed: float) -> dict:
    rows = []
    for candidate in candidates:
        low, median, high = quartiles(candidate.seconds)
        ratio_low, ratio, ratio_high = quartiles(candidate.ratios)
        rows.append(
            dict(
                name=candidate.name,
                rounds=len(candidate.seconds),
                median_ms=median * 1e3,
                quartiles_ms=[low * 1e3, high * 1e3],
                images_per_s=case.size[0] / median,
                ratio=ratio,
                ratio_quartiles=[ratio_low, ratio_high],
                peak_mib=candidate.peak_mib,
                difference=candidate.difference,
            )
        )
    return dict(case=case.name, **asdict(case), others=disturbed, candidates=rows)


def machine(device: str) -> dict:
    packages = ("torch", "onedl-mmdetection", "onedl-mmsegmentation", "onedl-mmpretrain", "timm")
    packages += ("torchvision", "transformers", "onnxruntime", "openvino")
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        flags=processor_flags(FLAGS),
        caches=dict(second=own_caches_bytes(), last=shared_cache_bytes()),
        python=platform.python_version(),
        versions={p: version(p) for p in packages if p.startswith("onedl") or find_spec(p)},
    )


def read_report(path: Path) -> dict:
    """Return the machines measured so far, each with its cases."""
    return json.loads(path.read_text()) if path.exists() else dict(machines=[])


def add(report: dict, head: dict, case: dict, order: Sequence[str]) -> None:
    """Add a case to the section of its machine, in place of what it measured before."""
    sections = report["machines"]
    section = next((s for s in sections if s["machine"] == head), None)
    if section is None:
        section = dict(machine=head, cases=[])
        sections.insert(0, section)
    cases = {each["case"]: each for each in section["cases"]} | {case["case"]: case}
    section["cases"] = [cases[name] for name in order if name in cases]


def fastest(case: dict) -> tuple[dict, dict]:
    """Return the fastest of our rows and of the others' at the case's precision."""
    bf16 = case["dtype"] == "bf16"
    rows = [row for row in case["candidates"] if row["name"].endswith(" bf16") == bf16]
    ours = [row for row in rows if row["name"].startswith("ours")]
    others = [row for row in rows if not row["name"].startswith(("ours", *RUNTIMES))]
    return tuple(min(each, key=lambda row: row["ratio"]) for each in (ours, others))


def disturbance(share: float | None) -> str:
    if share is None:  # a report from before this was recorded
        return "the machine had other work"
    return f"{share:.0%} of the processor time went to other processes"


def title(head: dict) -> str:
    """Return what a section calls a machine."""
    flags = ", ".join(head["flags"]) or "flags not known"
    return f"{head['device']} ({flags}), {head['threads']} threads, {head['instructions']}"


def markdown(report: dict, losses: Path) -> str:
    lines = [
        "# Performance, measured",
        "",
        "Made by `benchmarks/speed.py --out`, some cases alone with `--only`. Each candidate runs",
        "in a process of its own, in turns with ours: ours, the other, ours, and so on; a ratio",
        "is the median over these rounds, with its quartiles. Before it is timed, its output is",
        "compared with ours in float32 with the same weights: the difference is the largest one",
        "of maps of magnitude 1 to 10, or the share of pixels or boxes that differ. OpenVINO's",
        "files hold weights in half precision, so it differs more. Memory is what the case takes",
        "beyond the model's own. bfloat16 is autocast's, and OpenVINO's own; what CUDA's autocast",
        "does otherwise stands in [gpu.md](gpu.md). A section with ratios to mmpretrain or to a",
        "stock model was measured by an earlier version, all candidates in one process. A section",
        "with AVX2 on a processor that has AVX-512 was measured with PyTorch, oneDNN and MKL",
        "restricted to AVX2: it tells the ratios of AVX2 code on that core, and not the times of",
        "a processor without AVX-512.",
    ]
    for section in report["machines"]:
        lines += ["", *_section(section)]
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


def _section(section: dict) -> Iterator[str]:
    head = section["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
    yield f"## {title(head)}"
    yield ""
    caches = head.get("caches")
    sizes = caches and ", ".join(f"{v // 2**20} MiB of {k}-level" for k, v in caches.items())
    yield (f"Caches: {sizes or 'not recorded'}. Python {head['python']}, {versions}.")
    yield ""
    yield "The fastest of ours to the fastest other library, and runtimes of our files to ours:"
    yield ""
    columns = [*RUNTIMES, *(f"{name} int8" for name in RUNTIMES)]
    yield "| case | ours to it | fastest other library | " + " | ".join(columns) + " |"
    yield "|---|---|---|" + "---|" * len(columns)
    for result in section["cases"]:
        ours, other = fastest(result)
        files = [
            next((r["ratio"] for r in result["candidates"] if r["name"] in (name, in_bf16)), None)
            for name, in_bf16 in ((name, f"{name} bf16") for name in columns)
        ]
        told = [f"{ratio / ours['ratio']:.2f}" if ratio else "" for ratio in files]
        yield (
            f"| {result['case']} | {ours['ratio'] / other['ratio']:.2f} | {other['name']} | "
            f"{' | '.join(told)} |"
        )
    for result in section["cases"]:
        yield from ("", f"### {result['case']}", "")
        rows = result["candidates"]
        rounds = {row.get("rounds", result.get("rounds")) for row in rows[1:] or rows}
        yield f"{'-'.join(map(str, sorted(rounds)))} rounds; {disturbance(result['others'])}."
        yield ""
        yield f"| | ms | images/s | to {rows[0]['name']} | quartiles | peak MiB | difference |"
        yield "|---|---|---|---|---|---|---|"
        for row in rows:
            low, high = row["ratio_quartiles"]
            yield (
                f"| {row['name']} | {row['median_ms']:.1f} | {row['images_per_s']:.2f} | "
                f"{row['ratio']:.3f} | {low:.3f}-{high:.3f} | {row['peak_mib']:.0f} | "
                f"{row['difference']:.1e} |"
            )


def plot(section: dict, path: Path) -> None:
    """Draw the ratio of every candidate of a machine as a bar, grouped by case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = section["cases"]
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
