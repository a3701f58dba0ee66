"""The benchmark: what it writes, and that it times nothing which computes another function."""

import json
from functools import partial

import pytest
import torch
from support.running import assert_error, run_here

from backbones import InputError
from benchmarks.candidates import Candidate, check
from benchmarks.cases import CASES

CASE = "ConvNeXt-tiny inference 1x512x512 fp32"


@pytest.mark.slow
def test_every_peer_gives_our_output_and_all_figures_are_written(tmp_path):
    out = tmp_path / "folder" / "report"
    arguments = ("--only", CASE, "--rounds", 2, "--ways", "eager", "channels-last", "--out", out)
    outcome = run_here("speed.py", *arguments)
    assert outcome.status == 0, outcome.err
    report = json.loads(out.with_suffix(".json").read_text())
    assert {"device", "threads", "versions"} <= set(report["machine"])
    (case,) = report["cases"]
    rows = {row["name"]: row for row in case["candidates"]}
    libraries = ("mmpretrain", "timm", "torchvision", "transformers")
    assert set(rows) == {"ours eager"} | {
        f"{library} {way}" for library in libraries for way in ("eager", "channels-last")
    }
    for name, row in rows.items():
        assert row["median_ms"] > 0 and row["peak_mib"] > 0 and row["difference"] < 1e-4, name
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert rows["mmpretrain eager"]["ratio"] == 1
    text = out.with_suffix(".md").read_text()
    assert all(name in text for name in rows)
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_another_function_is_not_timed():
    case = next(case for case in CASES if case.name.endswith(CASE))

    def run(case, scale):
        return [scale * torch.ones(3)]

    same = [Candidate(name, partial(run, case, 1.0)) for name in ("first", "second")]
    check(case, same)
    other = Candidate("third", partial(run, case, 1.01))
    with pytest.raises(InputError, match="0.01") as caught:
        check(case, [*same, other])
    assert (caught.value.code, caught.value.where) == ("checkpoint-mismatch", "third")


def test_bad_arguments_are_named():
    assert_error(run_here("speed.py", "--only", "UperNetty"), "bad-argument", "UperNetty")
    outcome = run_here("speed.py", "--list")
    assert "Cascade Mask R-CNN train 1x480x640 bf16" in outcome.out


def test_a_gpu_is_needed_to_measure_one():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_error(run_here("gpu.py", "--quick"), "unsupported", "GPU")
