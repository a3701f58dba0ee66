"""A classifier's files: exported, compared, predicted and quantised as the other tasks' are."""

import csv
import json
from pathlib import Path

import pytest
from support.exported_models import exported, narrow_config, needs_nncf, overfitted
from support.forked import run_forked
from support.running import CLASSIFICATION, assert_error, run_here

from backbones.openmmlab.export.tensorrt import check_for_tensorrt
from backbones.openmmlab.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, shapes) -> tuple[Path, Path]:
    """Config and checkpoint of a narrow classifier that knows its test images."""
    path = narrow_config(CLASSIFICATION, tmp_path_factory.mktemp("classifier"))
    return overfitted(path, shapes, steps=40)


@pytest.fixture(scope="module")
def files(classifier, shapes, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {to: exported(*classifier, shapes, folder, to) for to in ("onnx", "openvino", "torch")}


@pytest.mark.slow
def test_files_score_and_predict_as_the_classifier(classifier, files, shapes, tmp_path):
    out = tmp_path / "benchmark.json"
    done = run_forked(
        "benchmark.py", *classifier, *files.values(), "--data", shapes, "--work-dir", tmp_path,
        "--out", out, "--rounds", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    model, *rows = json.loads(out.read_text())["models"]
    assert model["scores"]["top1"] > 60
    # OpenVINO's weights are in half precision.
    for row, rounding in zip(rows, (1e-3, 2e-2, 1e-3), strict=True):
        assert row["scores"]["top1"] == pytest.approx(model["scores"]["top1"], abs=500 * rounding)
        assert 0 < row["agreement"]["largest_differences"]["logits"] < rounding
        assert row["median_ms"] > 0
    (image,) = (shapes / "classes" / "val" / "star").glob("*1.jpg")
    expected = Predictor(*classifier, device="cpu")(image).scores
    assert expected.max() > 0.4
    for to, file in files.items():
        rounding = 1e-2 if to == "openvino" else 1e-4
        assert (Predictor(file)(image).scores - expected).abs().max() < rounding
    tested = run_here(
        "test.py", classifier[0], files["openvino"], "--data", shapes, "--work-dir", tmp_path
    )
    assert tested.status == 0, tested.err
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["top1"] == rows[1]["scores"]["top1"] <= figures["top2"]
    done = run_here("predict.py", files["onnx"], image, "--out", tmp_path / "found")
    assert done.status == 0, done.err
    (best, *_) = csv.DictReader((tmp_path / "found" / "predictions.csv").open())
    assert float(best["score"]) == pytest.approx(float(expected.max()), abs=1e-4)
    assert best["class"] == Predictor(files["onnx"]).classes[int(expected.argmax())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("onnx", ()),
        ("onnx", ("--for", "tensorrt")),
        pytest.param(
            "openvino",
            (),
            marks=needs_nncf,
        ),
    ],
)
def test_classifier_in_int8_keeps_its_top1(target, rules, classifier, files, shapes, tmp_path):
    out = (tmp_path / "int8").with_suffix(files[target].suffix)
    done = run_forked(
        "quantize.py", classifier[0], files[target], "--data", shapes, "--work-dir", tmp_path,
        "--out", out, "--rounds", 1, "--calibration", 4, "--keep-slower", "--max-drop", 0.04,
        *rules, cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(out.with_suffix(".json").read_text())
    scores = report["scores"]["top1"]
    assert scores["float"] > 60 and scores["float"] - scores["int8"] <= 4
    names = [layer["name"] for layer in report["layers"]]
    assert sorted(names) == [f"network.stages.{i}.0.pwconv{j}" for i in range(4) for j in (1, 2)]
    assert sum(layer["precision"] == "int8" for layer in report["layers"]) >= 4
    assert Predictor(out).model.precision == "int8"
    assert (report["median_ms"] is None) == bool(rules)
    if rules:
        check_for_tensorrt(out)


@pytest.mark.slow
def test_a_classifier_has_no_backbone_of_its_own(classifier, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here(
        "export.py", *classifier, "--to", "onnx", "--part", "backbone", "--data", shapes
    )
    assert_error(done, "bad-argument", "--part", "ImageClassifier")
    assert not list(tmp_path.glob("*.onnx"))
