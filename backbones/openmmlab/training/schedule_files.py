"""Write a traced schedule as a table or a figure."""

from pathlib import Path

import matplotlib
import numpy as np

from backbones.atomic_write import atomic_path

from .schedule import Trace


def columns(values: Trace) -> dict[str, np.ndarray]:
    """Return what is shown of every iteration: extreme rates and decays, and the EMA's decay."""
    found = {
        "lr, lowest": values.lr.min(axis=1),
        "lr, highest": values.lr.max(axis=1),
        "weight decay, lowest": values.weight_decay.min(axis=1),
        "weight decay, highest": values.weight_decay.max(axis=1),
    }
    if values.ema_decay is not None:
        found["EMA decay"] = values.ema_decay
    return found


def write_csv(values: Trace, path: Path) -> None:
    """Write every iteration's values."""
    shown = columns(values)
    rows = np.stack([np.arange(len(values.lr)), *shown.values()], axis=1)
    header = ",".join(name.replace(", ", "_").replace(" ", "_") for name in shown)
    with atomic_path(path) as part:
        np.savetxt(part, rows, "%.10g", ",", header=f"iteration,{header}", comments="")


def plot(values: Trace, path: Path, title: str) -> None:
    """Draw one panel for each kind of value, with a line per parameter group."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"learning rate": values.lr, "weight decay": values.weight_decay}
    if values.ema_decay is not None:
        moved = np.where(values.ema_decay < 1, 1 - values.ema_decay, np.nan)
        panels["1 - EMA decay"] = moved[:, None]  # 0.9999 would look like 1
    figure, axes = pyplot.subplots(
        len(panels), 1, sharex=True, figsize=(8, 2.6 * len(panels)), layout="constrained"
    )
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        marker = "." if np.isnan(lines).any() else None  # with accumulation most are left out
        axis.plot(lines, linewidth=1, marker=marker, markersize=2)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_title(title)
    axes[-1].set_xlabel("iteration")
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:])
    pyplot.close(figure)
