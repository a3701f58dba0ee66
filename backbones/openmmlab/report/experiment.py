"""Describe a run's config, and the commands that continue from it."""

import ast
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import load

# What a run sets by itself and no experiment is about.
RUNTIME_KEYS = ("launcher", "resume", "work_dir", "load_from", "custom_imports", "visualizer")
LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation",
    "numpy": "numpy", "faster-coco-eval": "faster-coco-eval",
}  # fmt: skip


def describe_config(config: Config) -> dict[str, Any]:
    """Describe a config: its claim, its own lines, its changes against its bases, all settings."""
    path = Path(config.filename) if config.filename else None
    text = path.read_text() if path and path.is_file() else ""
    resolved = flatten(config.to_dict())
    changes = []
    if path and text:
        bases = _bases(path)
        before = flatten(bases or {})
        for key in sorted({**before, **resolved}) if bases is not None else ():
            if key not in resolved and any(k.startswith(f"{key}.") for k in resolved):
                continue
            if before.get(key) != resolved.get(key):
                changes.append(dict(key=key, base=before.get(key), value=resolved.get(key)))
    lines = [line.strip().strip('"# ') for line in text.splitlines() if line.strip()]
    return dict(
        claim=lines[0] if lines else "",
        text=text,
        has_bases=bool(text) and "_base_" in text,
        changes=changes,
        resolved=resolved,
    )


def flatten(node: Any, path: str = "") -> dict[str, str]:
    """Return every leaf of a config by dotted key, as text; a list of plain values is one leaf."""
    nested = isinstance(node, list | tuple) and any(isinstance(x, dict | list) for x in node)
    if isinstance(node, dict) or nested:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        leaves: dict[str, str] = {}
        for key, value in items:
            if path or key not in RUNTIME_KEYS:
                leaves.update(flatten(value, f"{path}.{key}" if path else str(key)))
        return leaves
    if isinstance(node, tuple):  # a list and a tuple of the same values are the same setting
        node = list(node)
    return {path: repr(node)}


def _bases(path: Path) -> dict[str, Any] | None:
    """Merge the configs that a file inherits from: empty without any, None if they are computed."""
    if path.suffix == ".py":
        lines = [line for line in ast.parse(path.read_text()).body if isinstance(line, ast.Assign)]
        found = [line.value for line in lines if ast.unparse(line.targets[0]) == "_base_"]
        try:
            named = ast.literal_eval(found[0]) if found else []
        except ValueError:
            return None
    else:
        named = load(path).get("_base_", [])
    named = [named] if isinstance(named, str) else named
    # mmengine finds those of other packages (mmdet::...) itself.
    names = [name if "::" in name else str((path.parent / name).resolve()) for name in named]
    return Config.fromstring(f"_base_ = {names!r}", ".py").to_dict() if names else {}


def commands(runner: Any, report: dict) -> list[dict[str, str]]:
    """Return shell commands to resume, evaluate and predict, for the run's folder.

    Args:
        runner: the run's runner.
        report: the run's report so far; its `training` has the command line that started it.
    """
    argv = report.get("training", {}).get("command") or list(sys.argv)
    tools = Path(argv[0]).parent
    if not (tools / "predict.py").is_file() or not runner.cfg.filename:
        return []  # not started by our tools
    config, data, options = _shared(argv, str(runner.cfg.filename))
    work = ["--work-dir", _from_here(runner.work_dir)]
    last = Path(runner.work_dir) / "last_checkpoint"
    checkpoint = last.read_text().strip() if last.is_file() else runner.cfg.get("load_from")
    checkpoint = checkpoint and _from_here(checkpoint)
    processes = report.get("training", {}).get("processes", 1)
    start, launcher = ["python"], []
    if processes > 1:
        start = ["torchrun", "--nproc-per-node", str(processes)]
        launcher = ["--launcher", "pytorch"]
    rows = []
    if "training" in report:
        resume = [*start, str(tools / "train.py"), config, *work, *data, *launcher, "--resume"]
        rows.append(dict(what="Resume training", command=shlex.join(resume + options)))
    if checkpoint:
        test = [*start, str(tools / "test.py"), config, checkpoint, *work, *data, *launcher]
        rows.append(dict(what="Evaluate", command=shlex.join(test + options)))
        robust = ["python", str(tools / "robustness.py"), config, checkpoint, *work, *data]
        rows.append(dict(what="Measure robustness", command=shlex.join([*robust, *options])))
        loader = runner.cfg.get("test_dataloader") or runner.cfg.get("val_dataloader")
        if loader:
            prefix = loader.dataset.get("data_prefix") or {}
            images = prefix.get("img") or prefix.get("img_path") or ""
            folder = Path(loader.dataset.get("data_root") or "") / images
            out = _from_here(Path(runner.work_dir) / "predictions")
            predict = ["python", str(tools / "predict.py"), config, checkpoint, str(folder)]
            rows.append(
                dict(what="Predict", command=shlex.join([*predict, "--out", out, *options]))
            )
    return rows


def _shared(argv: list[str], config: str) -> tuple[str, list[str], list[str]]:
    """Return the config, `--data ROOT` and `--cfg-options KEY=VALUE ...` of a command line."""
    data: list[str] = []
    options: list[str] = []
    for i, word in enumerate(argv):
        if word == "--data":
            data = argv[i : i + 2]
        elif word.startswith("--data="):
            data = [word]
        elif word == "--cfg-options":
            rest = argv[i + 1 :]
            end = next((k for k, w in enumerate(rest) if w.startswith("--")), len(rest))
            options = ["--cfg-options", *rest[:end]]
    name = Path(config).name
    given = next((word for word in argv[1:] if Path(word).name == name), _from_here(config))
    return given, data, options


def _from_here(path: str | os.PathLike) -> str:
    """Shorten the path of a file in this folder; leave other paths and URLs unchanged."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def environment() -> dict[str, str]:
    """Return the versions of the libraries in use, and the device."""
    found = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    found["device"] = (
        torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    )
    if cuda:
        found["CUDA"] = str(torch.version.cuda)
    return found
