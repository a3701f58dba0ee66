#!/usr/bin/env python
"""Make the demo set, train on it, evaluate, draw: every tool once, in a few CPU minutes.

convnext walkthrough detection
convnext walkthrough segmentation
convnext walkthrough classification
"""

import argparse
import json
import sys
import time
from pathlib import Path

from backbones.openmmlab.steps import convnext, run_step

TOOLS = Path(__file__).parent
CONFIGS = TOOLS.parent / "configs"
SHAPES = ("circle", "square", "triangle", "star")
TASKS = {
    "detection": (
        CONFIGS / "detection" / "cascade_convnext_atto_demo.py",
        {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP"},
        1.0,
        [Path("data/demo/val2017")],
        "cascade_convnext_t",
    ),
    "segmentation": (
        CONFIGS / "segmentation" / "upernet_convnext_atto_demo.py",
        {"mIoU": "mIoU"},
        0.01,
        [Path("data/demo/images/validation")],
        "upernet_convnext_t",
    ),
    "classification": (
        CONFIGS / "classification" / "convnext_atto_demo.py",
        {"top-1": "top1"},
        0.01,
        [Path("data/demo/classes/val", name, f"{name}_000001.jpg") for name in SHAPES],
        "convnext_t_in1k",
    ),
}
OPTIONS = ("--cfg-options", "default_hooks.logger.interval=5", "randomness.seed=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    task = parser.parse_args().task
    config, scores, unit, images, recipe = TASKS[task]
    work_dir = Path("work_dirs") / config.stem
    common = ("--work-dir", work_dir, *OPTIONS)
    predictions = work_dir / "predictions"

    start = time.monotonic()
    run_step("1 of 4: draw the demo set", TOOLS / "prepare_data.py", "demo")
    run_step("2 of 4: train", TOOLS / "train.py", config, *common)
    checkpoint = (work_dir / "last_checkpoint").read_text().strip()
    trained = time.monotonic()
    run_step("3 of 4: evaluate", TOOLS / "test.py", config, checkpoint, *common)
    arguments = (config, checkpoint, *images, "--out", predictions)
    run_step("4 of 4: predict and draw", TOOLS / "predict.py", *arguments)
    metrics = json.loads((work_dir / "metrics.json").read_text())
    minutes = [(moment - start) / 60 for moment in (time.monotonic(), trained)]

    found = ", ".join(f"{name} {metrics[key] * unit:.3f}" for name, key in scores.items())
    print(f"\n{found}, after {minutes[0]:.1f} minutes ({minutes[1]:.1f} until it was trained)")
    print(f"report    {work_dir / 'report.html'}\npictures  {predictions / 'pictures'}")
    print(f"weights   {checkpoint}\n\nNext, with your own data:")
    # No classifier is published under a config's name, but this one's weights start a detector.
    first = f"predict {recipe} photo.jpg"
    if task == "classification":
        weights = f"init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={checkpoint}"
        detector = TASKS["detection"][0].stem
        first = f"train {detector} --data my_data --cfg-options model.backbone.{weights}"
    for arguments in (first, f"doctor {recipe} --data my_data", f"train {recipe} --data my_data"):
        print(f"$ {convnext()} {arguments}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
