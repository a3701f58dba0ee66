#!/usr/bin/env python
"""The paper's roadmap from ResNet to ConvNeXt: what each step costs and reaches; train the steps.

python tools/roadmap.py                            the ResNet-50 regime (Table 10)
python tools/roadmap.py --regime resnet200         the ResNet-200 regime (Table 11)
python tools/roadmap.py --plot figure2.png
python tools/roadmap.py --train data/imagenet --processes 8
python tools/roadmap.py --train data/demo --config configs/classification/roadmap_demo.py
python tools/roadmap.py --train data/imagenet --steps kernel_5 kernel_7 kernel_9
Training goes through the steps one after the other, with one recipe, data set and seed; run again,
it goes on where it was stopped. `resnet` has torchvision's recipe and is trained by the default
configs only.
"""

import argparse
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import atomic_path
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.doctor.complexity import multiply_adds
from backbones.roadmap import REGIMES, STEPS, SWIN, ModernizedResNetClassifier
from backbones.weights import read_checkpoint, state_dict, write_checkpoint

TOOLS = Path(__file__).parent
CONFIGS = TOOLS.parent / "configs" / "classification"
TITLES = {
    "resnet50": "ResNet-50 to ConvNeXt-T (Table 10)",
    "resnet200": "ResNet-200 to ConvNeXt-B (Table 11)",
}
# Rows whose printed multiply-adds differ from their network's.
NOTES = {
    ("resnet50", "layer_norm"): "printed: the next row's",
    ("resnet50", "separate_downsampling"): "Table 1 prints 4.5",
}


def main() -> None:
    description, _, examples = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--regime", choices=REGIMES, default="resnet50")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="these rows only")
    parser.add_argument("--json", action="store_true", help="the rows alone, as a JSON list")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw Figure 2, both regimes")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train", type=Path, metavar="DATA", help="folder of the data set; adds a measured column"
    )
    training.add_argument("--config", type=Path, help="default: the regime's ImageNet recipe")
    training.add_argument("--work-dir", type=Path, default=Path("work_dirs/roadmap"))
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--processes", type=int, default=1, help="GPUs, by torchrun")
    training.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change the config"
    )
    args = parser.parse_args()
    steps = [step for step in STEPS if args.steps is None or step in args.steps]
    if args.plot and args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--plot {args.plot}: the file's name has to end in .png, .pdf or .svg")
    measured = {}
    if args.train:
        # Standard output is for the rows alone.
        with redirect_stdout(sys.stderr):
            measured = train(args, steps)
    rows = [row(step, args.regime, measured.get(step)) for step in steps]
    if args.plot:
        plot(args.plot)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows, args.regime)
        if args.plot:
            print(f"drawn: {args.plot}")


def row(step: str, regime: str, measured: float | None = None) -> dict:
    """A row of the table: parameters and multiply-adds of a classifier at 224x224, and scores."""
    with torch.device("meta"):
        network = ModernizedResNetClassifier(step, regime=regime).eval()
        _, macs = multiply_adds(network, torch.empty(1, 3, 224, 224))
    published = getattr(STEPS[step], regime)
    return {
        "step": step,
        "regime": regime,
        "change": STEPS[step].change,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": macs,
        "published_gflops": published.gflops,
        "published_top1": published.top1,
        "published_deviation": published.std,
        "measured_top1": measured,
        "note": NOTES.get((regime, step), ""),
    }


def print_table(rows: list[dict], regime: str) -> None:
    """Print rows for a person, with a measured column where there is anything in it."""
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
        deviation = r["published_deviation"]
        top1 = f"{r['published_top1']:.2f}" + (f" ±{deviation:.2f}" if deviation else "      ")
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
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=160)).print(table)


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


def train(args: argparse.Namespace, steps: list[str]) -> dict[str, float]:
    """Train and evaluate the steps in turn; what is done already is kept.

    A step's run is in `<work dir>/<regime>/<step>`, its weights for a detector or segmentor in
    `<step>.pth` beside that folder.

    Returns:
        Top-1 in % of each step's last checkpoint.

    Raises:
        InputError: the work dir holds runs of another config, data set, seed or options; a step
            ended in an error, which its own tool has printed.
    """
    config = args.config or CONFIGS / f"roadmap_{args.regime}.py"
    if not config.is_file():
        raise InputError(f"{config}: no such config file")
    if args.config and "resnet" in steps:
        steps = [step for step in steps if step != "resnet"]
        print("resnet: not trained, its recipe is another one; training_recipe is its network")
    folder = args.work_dir / args.regime
    setting = {
        "config": str(config),
        "data": str(args.train),
        "seed": args.seed,
        "options": args.cfg_options,
    }
    _keep_setting(folder / "roadmap.json", setting)
    measured = {}
    for i, step in enumerate(steps):
        work_dir = folder / step
        metrics = work_dir / "metrics.json"
        if not metrics.is_file():
            print(f"\nroadmap {i + 1} of {len(steps)}: {step}, {STEPS[step].change}", flush=True)
            own = CONFIGS / f"roadmap_{args.regime}_torchvision.py"
            common = [own if step == "resnet" else config, "--work-dir", work_dir]
            common += ["--data", args.train]
            options = [
                f"model.network.regime={args.regime}",
                f"model.network.step={step}",
                *args.cfg_options,
            ]
            seeded = [*options, f"randomness.seed={args.seed}"]
            _run("train.py", [*common, "--resume", "--cfg-options", *seeded], args.processes, step)
            checkpoint = Path((work_dir / "last_checkpoint").read_text().strip())
            _write_weights(checkpoint, folder / f"{step}.pth")
            _run(
                "test.py",
                [*common[:1], checkpoint, *common[1:], "--cfg-options", *options],
                1,
                step,
            )
        measured[step] = json.loads(metrics.read_text())["top1"]
        print(f"roadmap {i + 1} of {len(steps)}: {step} {measured[step]:.2f}", flush=True)
    return measured


def _keep_setting(path: Path, setting: dict) -> None:
    """Write down what the runs of a folder have in common, or hold it against what is there."""
    if path.is_file():
        before = json.loads(path.read_text())
        for key, value in setting.items():
            if before.get(key) != value:
                raise InputError(
                    f"{path.parent}: holds runs with {key} {before.get(key)}, not {value}; "
                    "give another --work-dir or remove it"
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(setting, indent=1))
    part.replace(path)


def _run(tool: str, arguments: list, processes: int, step: str) -> None:
    """Run a tool to its end; Ctrl-C is its own to handle, and ends this one after it."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", processes]
    command = [*(launcher if processes > 1 else []), TOOLS / tool, *arguments]
    if processes > 1:
        command += ["--launcher", "pytorch"]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=sys.stderr)
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted or status == 130:
        raise KeyboardInterrupt(f"stopped in step {step}")
    if status:
        raise InputError(f"step {step}: tools/{tool} ended with status {status}, see above")


def _write_weights(checkpoint: Path, path: Path) -> None:
    """The network of a training checkpoint alone, as detectors and segmentors load it."""
    tensors = state_dict(read_checkpoint(checkpoint), checkpoint)
    network = {re.sub(r"^network\.", "", name): tensor for name, tensor in tensors.items()}
    write_checkpoint(network, path, wrapper="state_dict", safetensors=False)


if __name__ == "__main__":
    with reported_in_one_line("run the same command again to go on"):
        main()
