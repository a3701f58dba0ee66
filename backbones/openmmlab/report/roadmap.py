"""Show the paper's roadmap as a table and as its Figure 2."""

from functools import cache
from pathlib import Path

import torch
from rich.table import Table

from backbones.atomic_write import atomic_path
from backbones.openmmlab.doctor.complexity import multiply_adds
from backbones.roadmap import STEPS, SWIN, ModernizedResNetClassifier
from backbones.terminal import console

TITLES = {
    "resnet50": "ResNet-50 to ConvNeXt-T (Table 10)",
    "resnet200": "ResNet-200 to ConvNeXt-B (Table 11)",
}
# Rows whose printed multiply-adds differ from their network's.
NOTES = {
    ("resnet50", "layer_norm"): "printed: the next row's",
    ("resnet50", "separate_downsampling"): "Table 1 prints 4.5",
}


@cache
def count(step: str, regime: str) -> tuple[int, int]:
    """Count the parameters and multiply-adds of a step's classifier at 224x224."""
    with torch.device("meta"):
        network = ModernizedResNetClassifier(step, regime=regime).eval()
        _, macs = multiply_adds(network, torch.empty(1, 3, 224, 224))
    return sum(parameter.numel() for parameter in network.parameters()), macs


def row(step: str, regime: str, measured: float | None = None) -> dict:
    """Count a step's classifier at 224x224 and put its scores beside it.

    Args:
        step: a name in `STEPS`.
        regime: `resnet50` or `resnet200`.
        measured: top-1 in % of a run of this step, if there is one.
    """
    params, macs = count(step, regime)
    published = getattr(STEPS[step], regime)
    return {
        "step": step,
        "regime": regime,
        "change": STEPS[step].change,
        "params": params,
        "macs": macs,
        "published_gflops": published.gflops,
        "published_top1": published.top1,
        "published_std": published.std,
        "measured_top1": measured,
        "note": NOTES.get((regime, step), ""),
    }


def print_table(rows: list[dict], regime: str) -> None:
    """Print the rows as a table, with a column of measured scores if there are any."""
    trained = any(r["measured_top1"] is not None for r in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=TITLES[regime])
    table.add_column("step", no_wrap=True)
    table.add_column("what changes", no_wrap=True)
    for column in ("parameters", "multiply-adds", "published", "published top-1"):
        table.add_column(column, justify="right", no_wrap=True)
    if trained:
        table.add_column("measured top-1", justify="right", no_wrap=True)
    table.add_column("")
    for r in rows:
        std = r["published_std"]
        top1 = f"{r['published_top1']:.2f}" + (f" ±{std:.2f}" if std else "      ")
        found = r["measured_top1"]
        measured = [f"{found:.2f}" if found is not None else "-"] if trained else []
        table.add_row(
            r["step"],
            r["change"],
            f"{r['params'] / 1e6:.2f} M",
            f"{r['macs'] / 1e9:.2f} G",
            f"{r['published_gflops']:.2f} G",
            top1,
            *measured,
            r["note"],
        )
    console(160).print(table)


def plot(path: Path) -> None:
    """Draw the paper's Figure 2: published accuracy as bars, our multiply-adds beside them."""
    from matplotlib.figure import Figure

    colours = {"resnet50": "#2f6fb0", "resnet200": "#b9bfc6"}
    names = {
        "resnet50": "ResNet-50 to ConvNeXt-T",
        "resnet200": "ResNet-200 to ConvNeXt-B",
    }
    plain = dict(facecolor="white", edgecolor="none", pad=0.5)
    swins = {"resnet50": "Swin-T", "resnet200": "Swin-B"}
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    accuracy, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.25))
    labels = [step.replace("_", " ") for step in STEPS]
    for offset, regime in ((-0.2, "resnet50"), (0.2, "resnet200")):
        rows = [row(step, regime) for step in STEPS]
        heights = [i + offset for i in range(len(rows))]
        top1 = [r["published_top1"] for r in rows]
        # Kernel sizes that were tried and left are lighter.
        tried = [r["step"] in ("kernel_5", "kernel_9", "kernel_11") for r in rows]
        bars = accuracy.barh(heights, top1, 0.36, color=colours[regime], label=names[regime])
        for bar, left in zip(bars, tried, strict=True):
            bar.set_alpha(0.45 if left else 1)
        for height, value in zip(heights, top1, strict=True):
            accuracy.text(value + 0.05, height, f"{value:.2f}", va="center", fontsize=7, bbox=plain)
        gmacs = [r["macs"] / 1e9 for r in rows]
        cost.plot(gmacs, heights, "o", color=colours[regime], markersize=4)
        for height, value in zip(heights, gmacs, strict=True):
            cost.text(value + 0.6, height, f"{value:.2f}", va="center", fontsize=7)
        swin = SWIN[regime].top1
        accuracy.axvline(swin, color=colours[regime], linestyle=":", linewidth=1.2, zorder=0)
        accuracy.text(
            swin, -0.75, swins[regime], ha="center", va="bottom", fontsize=8, color="#555555"
        )
    accuracy.set_yticks(range(len(labels)), labels, fontsize=9)
    accuracy.set_ylim(len(labels) - 0.4, -0.7)
    accuracy.set_xlim(75, 84.5)
    accuracy.set_xlabel("ImageNet-1k top-1 in %, as published (from 75)")
    cost.set_xlim(0, 21)
    cost.set_xlabel("multiply-adds at 224, G")
    accuracy.legend(loc="lower center", bbox_to_anchor=(0.5, 1.03), ncols=2, frameon=False)
    for axes in (accuracy, cost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    cost.grid(axis="x", color="#e6e8ea", linewidth=0.8)
    cost.set_axisbelow(True)
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=150)
