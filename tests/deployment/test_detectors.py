"""A detector's INT8 is gated by box and mask AP, and its proposals are tuned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.exported_models import build, narrow_config, needs_nncf
from support.forked import run_forked
from support.published import write_found
from support.running import DETECTION, run_here

from backbones.openmmlab.config import load_config
from backbones.openmmlab.export.exporting import describe
from backbones.openmmlab.export.files import OPSET, TARGETS, capture
from backbones.openmmlab.export.graphs import build_graph
from backbones.openmmlab.prediction.predictor import Predictor

FEW = (
    'model["test_cfg"] = dict('
    "rpn=dict(min_bbox_size=48), rcnn=dict(score_thr=0.05, max_per_img=20))\n"
)
MAX_DROP = 0.5
METRICS = {"coco/bbox_mAP", "coco/segm_mAP"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint of a narrow detector, which is not trained."""
    path = narrow_config(DETECTION, tmp_path_factory.mktemp("detector"))
    path.write_text(path.read_text() + FEW)
    checkpoint = path.with_suffix(".pth")
    torch.save({"state_dict": build(path).state_dict()}, checkpoint)
    return path, checkpoint


@pytest.fixture(scope="module")
def found(detector, tmp_path_factory) -> Path:
    """Images on which the detector's box and mask AP are 1, for training too."""
    root = write_found(Predictor(*detector, device="cpu"), tmp_path_factory.mktemp("data") / "coco")
    shutil.copytree(root / "val2017", root / "train2017")
    annotations = root / "annotations"
    shutil.copy(annotations / "instances_val2017.json", annotations / "instances_train2017.json")
    return root


def written(detector: tuple[Path, Path], target: str, folder: Path) -> Path:
    """The detector's file, from a graph of its own: a captured one is converted once."""
    predictor = Predictor(*detector, device="cpu")
    graph = build_graph(predictor.model)
    path = (folder / "model").with_suffix(TARGETS[target].suffix)
    metadata = describe(predictor, graph, "model", "fp32")
    TARGETS[target].write(capture(graph), path, metadata, OPSET)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        "tensorrt",  # ONNX of operators that TensorRT has
        pytest.param(
            "openvino",
            marks=needs_nncf,
        ),
    ],
)
def test_detector_in_int8_keeps_both_aps(target, detector, found, tmp_path):
    """Boxes of untrained weights move at every rounding: some layers have to return to float."""
    file = written(detector, target, tmp_path)
    out = file.with_stem("int8")
    done = run_forked(
        "quantize.py", detector[0], file, "--data", found, "--work-dir", tmp_path,
        "--out", out, "--rounds", 1, "--calibration", 2, "--keep-slower", "--max-drop", MAX_DROP,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(out.with_suffix(".json").read_text())
    assert set(report["scores"]) == METRICS
    for scores in report["scores"].values():
        assert scores["float"] > 0.99 and scores["float"] - scores["int8"] <= MAX_DROP
    drops = [scores["float"] - scores["int8"] for scores in report["scores"].values()]
    assert report["drop"] == pytest.approx(max(drops))
    layers = report["layers"]
    quantised = [layer["name"] for layer in layers if layer["precision"] == "int8"]
    assert len(quantised) >= 1
    first, *_ = report["attempts"]
    assert first["int8_layers"] == len(layers)
    assert (first["drop"] > MAX_DROP) == (len(quantised) < len(layers))
    names = [layer["name"] for layer in layers]
    for part in ("backbone.stages.0.0.pwconv1", "neck.", "bbox_head.2.shared_fcs", "mask_head."):
        assert any(part in name for name in names), part
    for kept in ("fc_cls", "fc_reg", "rpn_cls", "conv_logits", "dwconv", "downsample_layers"):
        assert not any(kept in name for name in names), kept
    assert Predictor(out).model.precision == "int8"


@pytest.mark.slow
def test_detectors_proposals_are_tuned_and_written(detector, found, tmp_path):
    out = tmp_path / "fast.py"
    arguments = (*detector, "--data", found, "--work-dir", tmp_path)
    done = run_forked(
        "tune_latency.py", *arguments, "--out", out, "--vary", "proposals", "--max-drop", 1,
        "--images", 2, "--rounds", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    points = json.loads((tmp_path / "latency.json").read_text())["points"]
    assert [point["settings"]["proposals"] for point in points] == ["1000", "500", "300", "100"]
    for key in METRICS:
        assert points[0]["scores"][key] > 0.99 and points[-1]["scores"][key] < 1
    fastest = min(points, key=lambda point: point["median_ms"])
    assert fastest["front"] and fastest["median_ms"] > 0
    proposals = load_config(out).model.test_cfg.rpn.max_per_img
    assert str(proposals) == fastest["settings"]["proposals"]
    # The written config runs, and scores what the table says.
    tested = run_here("test.py", out, detector[1], "--work-dir", tmp_path)
    assert tested.status == 0, tested.err
    figures = json.loads((tmp_path / "metrics.json").read_text())
    for key in METRICS:
        assert figures[key] == pytest.approx(fastest["scores"][key], abs=0.002)
