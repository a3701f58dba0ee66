"""Runs on images of other bands: from the data to exported files, hostile rasters, robustness."""

import json
from pathlib import Path

from support.drawn_bands import NAMES, TOLD_BY, draw_bands
from support.forked import run_forked
from support.running import REPOSITORY
from support.small_runs import write_config

CLASSIFICATION = REPOSITORY / "configs" / "classification" / "convnext_atto_demo.py"
METRIC = {"segmentation": "mIoU", "detection": "coco/bbox_mAP"}
# What the drawn sets are trained to, and what a run on the RGB bands stays below.
REACHED = {"segmentation": (85.0, 60.0), "detection": (0.5, 0.1)}
LEARNING = {
    "segmentation": (
        "train_cfg = dict(max_iters=60, val_interval=60)",
        "val_dataloader['dataset'] = dict(indices=None)",
        "optim_wrapper = dict(optimizer=dict(lr=1e-3))",
    ),
    "detection": (
        "train_cfg = dict(max_epochs=8, val_interval=8)",
        "default_hooks['checkpoint'] = dict(interval=8)",
        "optim_wrapper = dict(optimizer=dict(lr=2e-3))",
    ),
}


def draw(root: Path, task: str, bands: int, dtype: str, images: int = 24) -> Path:
    layout = dict(segmentation="labels", detection="coco", classification="folders")[task]
    draw_bands(root, bands, dtype, TOLD_BY[bands], images, layout=layout)
    (root / "bands.json").write_text(json.dumps(dict(names=NAMES[bands])))
    return root


def done(tool: str, *arguments: object, cwd: Path) -> str:
    outcome = run_forked(tool, *arguments, cwd=cwd)
    assert outcome.status == 0, outcome.err[-3000:]
    return outcome.out


def trained(folder: Path, task: str, root: Path, *lines: str) -> tuple[Path, Path, dict]:
    """The resolved config, the checkpoint and the report of a training."""
    folder.mkdir()
    config = write_config(folder, task, *LEARNING[task], *lines)
    run = folder / "run"
    done("train.py", config, "--data", root, "--work-dir", run, cwd=folder)
    (checkpoint,) = run.glob("*.pth")
    report = json.loads((run / "report.json").read_text())
    return run / config.name, checkpoint, report
