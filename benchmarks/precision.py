#!/usr/bin/env python
"""Train a config's first steps in float32, bfloat16 and float16 and compare the losses.

python -m benchmarks.precision configs/detection/cascade_convnext_atto_demo.py
python -m benchmarks.precision CONFIG CONFIG --steps 100 --seeds 3 --out docs/precision

Every precision starts from the same weights and sees the same images, once for each seed. What the
seeds differ by in float32 is the noise; a precision whose mean lies within it has lost nothing.
Writes OUT.json and OUT.png. float16 needs a GPU.
"""

import json
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import parser_for
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.training.runner import Runner

LAST = 20  # steps whose mean loss is compared
COLORS = dict(float32="#444444", bfloat16="#2a78b5", float16="#c8553d")


def train(path: Path, precision: str, seed: int, steps: int, work_dir: str) -> list[float]:
    """Record the loss of each step."""
    options = Options(path, {"randomness.seed": seed}, work_dir=Path(work_dir))
    config = prepare(options, "inspect")
    config.log_level = "WARNING"
    config.experiment_name = f"{path.stem}_{precision}_{seed}"
    check_data(config, ("train",))
    fit_to_machine(config)
    set_random_seed(seed)
    runner = Runner.from_cfg(plain(config))
    model = cast(BaseModel, runner.model).train()
    model.init_weights()
    optimizer = runner.build_optim_wrapper(config.optim_wrapper).optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    device = next(model.parameters()).device.type
    dtype = getattr(torch, precision)
    scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
    losses: list[float] = []
    while len(losses) < steps:
        for data in runner.train_dataloader:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (len(losses) + 1) / 50)
            context = nullcontext() if precision == "float32" else torch.autocast(device, dtype)
            with context:
                data = model.data_preprocessor(data, True)
                loss, _ = model.parse_losses(model(**data, mode="loss"))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


def plain(config: Config) -> Config:
    """Return the config with one data loading process, so that images are the same in every run."""
    config.train_dataloader.num_workers = 0
    config.train_dataloader.persistent_workers = False
    return config


def plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(5 * len(results), 3.6), squeeze=False)
    for axes, (name, runs) in zip(panels[0], results.items(), strict=True):
        for precision, seeds in runs.items():
            for i, losses in enumerate(seeds):
                label = precision if i == 0 else None
                axes.plot(losses, color=COLORS[precision], linewidth=0.9, alpha=0.7, label=label)
        axes.set(title=name, xlabel="step", ylabel="loss")
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.tight_layout()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=150)


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=list(COLORS))
    parser.add_argument("--out", type=Path, metavar="OUT", default=Path("work_dirs/precision"))
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    precisions = args.precisions or list(COLORS)[: 3 if cuda else 2]
    if "float16" in precisions and not cuda:
        raise InputError("--precisions float16: needs a GPU")
    if args.steps < LAST:
        raise InputError(f"--steps {args.steps}: at least {LAST}, whose losses are compared")

    console, results, rows = Console(), {}, []
    # One folder for all runs: mmengine's visualizer outlives a run and keeps its own.
    with tempfile.TemporaryDirectory() as work_dir:
        for path in args.configs:
            runs = results[path.stem] = {}
            for precision in precisions:
                runs[precision] = []
                for seed in range(args.seeds):
                    runs[precision].append(train(path, precision, seed, args.steps, work_dir))
                    last = runs[precision][-1][-1]
                    console.print(f"{path.stem} {precision} seed {seed}: {last:.4f}")
            rows += [(path.stem, precision, *ends(runs[precision])) for precision in precisions]
    table = Table("config", "precision", f"mean loss of the last {LAST}", "over the seeds")
    for name, precision, mean, deviation in rows:
        table.add_row(name, precision, f"{mean:.4f}", f"{deviation:.4f}")
    console.print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out.with_suffix(".json"), json.dumps(results) + "\n")
    plot(results, args.out.with_suffix(".png"))


def ends(seeds: list[list[float]]) -> tuple[float, float]:
    """Return mean and standard deviation over the seeds of the last steps' loss."""
    means = [statistics.fmean(losses[-LAST:]) for losses in seeds]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0


if __name__ == "__main__":
    with reported_in_one_line():
        main()
