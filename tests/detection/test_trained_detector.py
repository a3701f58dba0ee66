"""What must not cost a trained detector anything: test-time augmentation, bfloat16, export."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.forked import run_forked
from support.running import DETECTION, run_here

from backbones.openmmlab.prediction.exported import open_onnx

LOADING = (
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple:
    """Arguments of a tool that runs a detector trained for minutes on drawn shapes."""
    root = tmp_path_factory.mktemp("trained")
    # Of the size that the config tests at, or scales would be compared with one never trained on.
    sizes = ("--root", root, "--train", 64, "--val", 40, "--size", 160)
    assert run_here("prepare_data.py", "demo", *sizes).status == 0
    common = ("--data", root / "demo", "--work-dir", root / "run")
    options = (
        "randomness.seed=0",
        "train_cfg.max_epochs=12",
        "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False",
        "val_dataloader=None",
        "val_cfg=None",
        "val_evaluator=None",
        *LOADING,
    )
    done = run_forked("train.py", DETECTION, *common, "--cfg-options", *options, cwd=root)
    assert done.status == 0, done.err
    return (DETECTION, (root / "run" / "last_checkpoint").read_text(), *common)


def metrics(arguments: tuple, folder: Path, *more: object) -> dict:
    done = run_forked("test.py", *arguments, "--out", folder / "metrics.json", *more, cwd=folder)
    assert done.status == 0, done.err
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_augmentation_and_bfloat16_lose_nothing(trained, tmp_path):
    loaders = ("--cfg-options", *LOADING)
    single = metrics(trained, tmp_path, *loaders)
    assert single["coco/segm_mAP"] > 0.1
    # Four trainings: scales gained 0.016 to 0.049 AP. A flip lost 0.001 to 0.009 in the three of a
    # minute and gained 0.007 and 0.011 in that of seven, `make demo`'s.
    for protocol, noise in (("flip", 0.02), ("multi_scale", 0)):
        merged = metrics(trained, tmp_path, "--tta", protocol, *loaders)
        for key in ("coco/segm_mAP", "coco/bbox_mAP"):
            assert merged[key] >= single[key] - noise
    rough = metrics(trained, tmp_path, *loaders, "inference_dtype=bfloat16")
    for key in ("coco/bbox_mAP", "coco/segm_mAP"):
        assert rough[key] == pytest.approx(single[key], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "fp16"), [("onnx", False), ("onnx", True), ("torch", False)], ids=str
)
def test_exported_detector_keeps_its_ap(target, fp16, trained, tmp_path):
    out = tmp_path / ("detector.onnx" if target == "onnx" else "detector.pt2")
    done = run_here(
        "export.py", *trained, "--to", target, "--out", out, "--images", 16, *["--fp16"] * fp16
    )
    assert done.status == 0, done.err
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["images"] == 16 and report["outputs"] == ["dets", "labels", "masks"]
    for kind in ("bbox", "segm"):
        score = report["scores"][f"coco/{kind}_mAP"]
        assert score["model"] > 0.05 and abs(score["change"]) <= (0.02 if fp16 else 1e-3)
    if target == "torch":  # holds no image without a detection (docs/export.md)
        return
    blank = open_onnx(out)(
        np.full((1, 3, 75, 203), 114, np.float32)
    )  # another size, hardly any object
    assert blank[0].shape[2] == 5 and blank[2].shape[1] == blank[0].shape[1] == blank[1].shape[1]
