"""`convnext benchmark`: a model's files beside it, each timed in a process of its own."""

import json

import pytest
from mmengine.config import Config
from support.exported_models import narrow_config
from support.forked import run_forked
from support.running import DETECTION, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.deployment.comparing import compare_files
from backbones.openmmlab.deployment.timing import TimedModel, Timing, quartiles, time_in_turns


@pytest.mark.slow
def test_files_are_compared_and_timed(trained_segmentor, segmentor_files, shapes, tmp_path):
    out = tmp_path / "new" / "benchmark.json"
    done = run_forked(
        "benchmark.py", *trained_segmentor, *segmentor_files.values(), "--data", shapes,
        "--work-dir", tmp_path, "--out", out, "--images", 4, "--rounds", 2, cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(out.read_text())
    names = ["model", *(file.name for file in segmentor_files.values())]
    assert [row["name"] for row in report["models"]] == names
    assert report["images"] == 4 and report["machine"]["threads"] >= 1
    model, *files = report["models"]
    assert model["ratio"] == 1 and model["agreement"] is None
    for row in report["models"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        low, high = row["quartiles_ms"]
        assert 0 < low <= row["median_ms"] <= high
        assert 1 < row["peak_memory_mib"] < 4000
        half = row["precision"] == "fp16 weights"
        assert abs(row["scores"]["mIoU"] - model["scores"]["mIoU"]) < (2 if half else 0.1)
        assert row["name"] in done.out and f"{row['median_ms']:.1f}" in done.out
    assert model["scores"]["mIoU"] > 20
    assert [row["runtime"].split()[0] for row in files] == ["onnxruntime", "openvino", "torch"]
    differences = [row["agreement"]["largest_differences"] for row in files]
    assert [set(found) for found in differences] == [{"logits"}, {"logits"}, {"labels"}]
    assert 0 < differences[0]["logits"] < 1e-3 and 0 < differences[1]["logits"] < 2e-2
    # Nothing is timed where the outputs differ, and a file of other classes is of another model.
    again = run_here(
        "benchmark.py", *trained_segmentor, segmentor_files["onnx"], "--data", shapes,
        "--work-dir", tmp_path, "--out", out, "--tolerance", 1e-12,
    )  # fmt: skip
    assert_error(again, "unsupported", segmentor_files["onnx"], "logits", "1e-12")
    other = run_here("benchmark.py", DETECTION, trained_segmentor[1], segmentor_files["onnx"])
    assert_error(other, other.code)


@pytest.mark.slow
def test_mistakes_in_a_process_of_its_own_arrive(tmp_path):
    """A file that cannot be opened there, and a process that is killed."""
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"no")
    with pytest.raises(InputError) as caught:
        time_in_turns([TimedModel("broken", broken)], [], 1, 1)
    assert (caught.value.code, caught.value.where) == ("broken-file", str(broken))


def test_quartiles_are_of_the_rounds():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    timing = Timing([5.0, 1.0, 2.0, 3.0, 4.0])
    assert timing.quartiles() == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (("model.pth",), "bad-argument", ("model.pth", ".onnx")),
        (("missing.onnx",), "not-found", ("missing.onnx",)),
    ],
)
def test_bad_arguments_are_one_line(arguments, code, names, shapes, tmp_path):
    config = narrow_config(DETECTION, tmp_path)
    checkpoint = tmp_path / "x.pth"
    checkpoint.write_bytes(b"x")
    done = run_here("benchmark.py", config, checkpoint, *arguments, "--data", shapes)
    assert_error(done, code, *names)


@pytest.mark.parametrize("name", ["images", "rounds", "threads"])
def test_numbers_are_positive(name):
    with pytest.raises(InputError) as caught:
        compare_files(Config(), "x.pth", [], **{name: -1})
    assert (caught.value.code, caught.value.where) == ("bad-argument", f"--{name}")
