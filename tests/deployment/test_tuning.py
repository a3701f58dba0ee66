"""`convnext tune-latency`: its knobs, the front, and the config of the chosen point."""

import json

import pytest
from PIL import Image
from support.forked import run_forked
from support.running import DETECTION, SEGMENTATION, assert_error, run_here

from backbones.openmmlab.config import load_config
from backbones.openmmlab.deployment.timing import Timing
from backbones.openmmlab.deployment.tuning import Point, choose, knobs_of, mark_front, points_of
from backbones.openmmlab.tasks import task_of_scope

WINDOWS = ("128, stride 85", "128, stride 128", "256, stride 170", "whole")


def test_knobs_begin_with_the_configs_own_settings():
    config = load_config("cascade_convnext_t")
    knobs = knobs_of(config)
    assert list(knobs["proposals"]) == ["1000", "500", "300", "100"]
    assert list(knobs["size"]) == ["1333x800", "999x600", "666x400"]
    assert list(knobs["dtype"])[0] == "float32" and list(knobs["runtime"])[0] == "PyTorch"
    points = points_of({name: knobs[name] for name in ("proposals", "size")})
    assert len(points) == 12 and points[0].settings == {"proposals": "1000", "size": "1333x800"}
    assert points[-1].overrides["model.test_cfg.rpn.max_per_img"] == 100
    knobs = knobs_of(load_config(SEGMENTATION))
    assert list(knobs["window"]) == list(WINDOWS)
    assert knobs["window"]["256, stride 170"]["model.test_cfg.crop_size"] == (256, 256)
    assert knobs["window"]["whole"] == {"model.test_cfg.mode": "whole"}
    assert "proposals" not in knobs


def test_front_is_what_nothing_beats():
    figures = [(9, 0.50), (5, 0.50), (3, 0.49), (4, 0.48), (2, 0.30), (2, 0.31), (3, 0.49)]
    points = [
        Point({}, {}, {"coco/bbox_mAP": score, "coco/segm_mAP": 0.4}, Timing([ms / 1e3]))
        for ms, score in figures
    ]
    task = task_of_scope("mmdet")
    mark_front(points, task.main_metrics[0])
    assert [point.front for point in points] == [False, True, True, False, False, True, True]
    assert choose(points, task, 0.005) is points[1]
    assert choose(points, task, 0.011) is points[2]
    points[2].scores["coco/segm_mAP"] = 0.3  # the other main metric counts too
    assert choose(points, task, 0.011) is points[6]


@pytest.mark.slow
def test_segmentors_points_are_measured_and_written(trained_segmentor, shapes, tmp_path):
    out = tmp_path / "fast.py"
    done = run_forked(
        "tune_latency.py", *trained_segmentor, "--data", shapes, "--work-dir", tmp_path, "--out",
        out, "--vary", "window", "runtime", "--max-drop", 1, "--images", 2, "--rounds", 1,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    points = json.loads((tmp_path / "latency.json").read_text())["points"]
    named = [(point["settings"]["window"], point["settings"]["runtime"]) for point in points]
    assert named[:4] == [(window, "PyTorch") for window in WINDOWS]
    assert named[4:] == [("whole", "onnxruntime"), ("whole", "OpenVINO")]
    scores = [point["scores"]["mIoU"] for point in points]
    assert min(scores) > 20 and max(scores[3:]) - min(scores[3:]) < 0.2
    assert all(point["median_ms"] > 0 for point in points) and any(p["front"] for p in points)
    assert Image.open(tmp_path / "latency.png").size[0] > 400
    fastest = min(points, key=lambda point: point["median_ms"])["settings"]["window"]
    test_cfg = load_config(out).model.test_cfg
    assert test_cfg.mode == ("whole" if fastest == "whole" else "slide")


def test_unknown_knobs_are_one_line(shapes, tmp_path, demo_models):
    config, checkpoint = demo_models["detection"]
    assert config == DETECTION
    done = run_here(
        "tune_latency.py", config, checkpoint, "--data", shapes, "--vary", "window",
        "--work-dir", tmp_path,
    )  # fmt: skip
    assert_error(done, "unknown-name", "--vary", "window", "proposals")
