#!/usr/bin/env python
"""Make the demo set, train on it, evaluate, draw: every tool once, in a few CPU minutes.

python tools/walkthrough.py detection
python tools/walkthrough.py segmentation
python tools/walkthrough.py classification
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

TOOLS = Path(__file__).parent
CONFIGS = TOOLS.parent / "configs"
SHAPES = ("circle", "square", "triangle", "star")
TASKS = {
    "detection": (
        CONFIGS / "detection" / "cascade_convnext_atto_demo.py",
        {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP"},
        1.0,
        [Path("data/demo/val2017")],
    ),
    "segmentation": (
        CONFIGS / "segmentation" / "upernet_convnext_atto_demo.py",
        {"mIoU": "mIoU"},
        0.01,
        [Path("data/demo/images/validation")],
    ),
    "classification": (
        CONFIGS / "classification" / "convnext_atto_demo.py",
        {"top-1": "top1"},
        0.01,
        [Path("data/demo/classes/val", name, f"{name}_000001.jpg") for name in SHAPES],
    ),
}


def run(tool: str, *arguments: object) -> None:
    """Run a tool as a user would; its failure is ours."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    print("\n$ " + " ".join(["python", f"tools/{tool}", *map(str, arguments)]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    task = parser.parse_args().task
    config, scores, unit, images = TASKS[task]
    work_dir = Path("work_dirs") / config.stem

    start = time.monotonic()
    run("prepare_data.py", "demo")
    run("train.py", config, "--work-dir", work_dir)
    checkpoint = (work_dir / "last_checkpoint").read_text().strip()
    trained = time.monotonic()
    run("test.py", config, checkpoint, "--work-dir", work_dir)
    run("predict.py", config, checkpoint, *images, "--out", work_dir / "predictions")
    metrics = json.loads((work_dir / "metrics.json").read_text())

    table = Table("result", "value", title=config.stem)
    for name, key in scores.items():
        table.add_row(name, f"{metrics[key] * unit:.3f}")
    table.add_row("training", f"{(trained - start) / 60:.1f} min")
    table.add_row("all", f"{(time.monotonic() - start) / 60:.1f} min")
    table.add_row("checkpoint", str(checkpoint))
    table.add_row("pictures", str(work_dir / "predictions" / "pictures"))
    Console().print(table)
    if task == "classification":
        detector = TASKS["detection"][0]
        print(
            f"\nIts weights start a detector:\n$ python tools/train.py {detector} --cfg-options "
            "model.backbone.init_cfg.type=Pretrained "
            f"model.backbone.init_cfg.checkpoint={checkpoint}"
        )


if __name__ == "__main__":
    main()
