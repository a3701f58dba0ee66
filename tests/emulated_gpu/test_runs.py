"""Train, evaluate, resume and predict with the tools on the emulated GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import REPOSITORY
from support.small_runs import write_config

pytestmark = pytest.mark.slow
OPTIONS = {
    "segmentation": {
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "model.backbone.drop_path_rate": 0.5,
        "inference_dtype": "bfloat16",
    },
    "detection": {
        "train_cfg.max_epochs": 1,
        "train_dataloader.dataset.indices": 4,
        "val_dataloader.dataset.indices": 1,
    },
}


def run(tool: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.emulated_gpu.tool", tool, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def logged(work_dir: Path) -> list[dict]:
    (path,) = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1:]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_train_and_evaluate(task, shapes, tmp_path):
    config, work_dir = write_config(tmp_path, task), tmp_path / "run"
    options = [f"{key}={value}" for key, value in OPTIONS[task].items()]
    start = [config, "--data", shapes, "--work-dir", work_dir, "--cfg-options", *options]
    run("train.py", *start)
    steps = [line for line in logged(work_dir) if "loss" in line]
    assert len(steps) == 2 and all(0 < step["loss"] < 100 for step in steps)
    score = "mIoU" if task == "segmentation" else "coco/bbox_mAP"
    assert any(score in line for line in logged(work_dir))
    if task == "segmentation":
        run("train.py", *start, "train_cfg.max_iters=3", "--resume")
        (checkpoint,) = work_dir.glob("iter_3.pth")
        state = torch.load(checkpoint, weights_only=False)
        steps = {int(each["step"]) for each in state["optimizer"]["state"].values()}
        assert steps == {3} and state["optimizer"]["param_groups"][0]["fused"]
        image = next(shapes.rglob("*.png"))
        run("predict.py", config, checkpoint, image, "--tile", 64, "--out", tmp_path / "found")
        assert any((tmp_path / "found").rglob("*.png"))
