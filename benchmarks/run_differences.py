"""Compare the checkpoints and logs of two finished runs, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from backbones.weights import read_checkpoint

# Times, memory and names that differ from run to run by their nature.
UNLIKE = {
    "time", "data_time", "memory", "eta", "seconds", "experiment_name", "cfg", "mmengine_version",
}  # fmt: skip
PATHS = {"last_ckpt", "best_ckpt"}


def differences(one: Path, other: Path) -> list[str]:
    """Return what is not bit for bit the same in the work dirs of two finished runs."""
    found: list[str] = []
    last = [Path((d / "last_checkpoint").read_text()).name for d in (one, other)]
    names = [sorted(p.name for p in d.glob("*.pth")) for d in (one, other)]
    if last[0] != last[1] or names[0] != names[1]:
        return [f"checkpoints {last[0]} of {names[0]} and {last[1]} of {names[1]}"]
    for name in names[0]:
        _compare(read_checkpoint(one / name), read_checkpoint(other / name), name, found)
    scores, others = _log_lines(one), _log_lines(other)
    found += [f"log line {key}" for key in scores.keys() ^ others.keys()]
    for key in scores.keys() & others.keys():
        if len({*scores[key], *others[key]}) != 1:
            found.append(f"log line {key}")
    return found


def _compare(one: Any, other: Any, where: str, found: list[str]) -> None:
    if where.endswith((".pth.meta", ".resumed_keys")):
        return
    if isinstance(one, HistoryBuffer):
        one, other = (list(buffer.data) for buffer in (one, other))
    if isinstance(one, dict):
        keys = (set(one) | set(other)) - UNLIKE
        for key in keys:
            if str(key).split("/")[-1] in UNLIKE:
                continue
            if key not in one or key not in other:
                found.append(f"{where}.{key}: in one only")
            elif key in PATHS:
                _compare(Path(one[key]).name, Path(other[key]).name, f"{where}.{key}", found)
            else:
                _compare(one[key], other[key], f"{where}.{key}", found)
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            found.append(f"{where}: {len(one)} and {len(other)} entries")
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            _compare(a, b, f"{where}.{i}", found)
    elif isinstance(one, torch.Tensor | np.ndarray):
        one, other = (np.asarray(x) for x in (one, other))
        same = one.dtype == other.dtype and one.shape == other.shape
        if not same or one.tobytes() != other.tobytes():
            found.append(where)
    elif one != other and not (one != one and other != other):
        found.append(where)


def _log_lines(folder: Path) -> dict[tuple, set[str]]:
    """Return the lines of losses and scores by step; a step done twice has to give the same."""
    lines: dict[tuple, set[str]] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the kill came within it
                continue
            line = {k: v for k, v in line.items() if k not in UNLIKE}
            key = ("train" if "loss" in line else "validation", line["step"])
            lines.setdefault(key, set()).add(json.dumps(line, sort_keys=True))
    return lines
