"""The benchmark: what it writes, and that it times nothing which computes another function."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.running import assert_error, run_here

from backbones import InputError
from backbones.openmmlab.deployment.layers import has_narrow_weights
from benchmarks.candidates import Candidate, check
from benchmarks.cases import CASES
from benchmarks.results import add, fastest, markdown

CASE = "ConvNeXt-tiny inference 1x512x512 fp32"


@pytest.mark.slow
def test_every_peer_gives_our_output_and_all_figures_are_written(tmp_path):
    out = tmp_path / "folder" / "report"
    outcome = run_here(
        "speed.py", "--only", CASE, "--rounds", 2, "--ways", "fused", "channels-last",
        "--peers", "timm", "torchvision", "onnxruntime", "openvino", "--out", out,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    report = json.loads(out.with_suffix(".json").read_text())
    (section,) = report["machines"]
    assert {"device", "threads", "caches", "versions"} <= set(section["machine"])
    (case,) = section["cases"]
    rows = {row["name"]: row for row in case["candidates"]}
    names = ["ours eager", "ours fused", "timm channels-last", "torchvision channels-last"]
    int8 = [] if has_narrow_weights() else [" int8"]
    files = [f"{name}{kind}" for name in ("onnxruntime", "openvino") for kind in ("", *int8)]
    assert list(rows) == [*names, *files]
    for name, row in rows.items():
        assert row["median_ms"] > 0 and row["peak_mib"] > 0 and row["ratio"] > 0
        rounding = (1e-2, 1.0) if "int8" in name else (0, 5e-2) if name == "openvino" else (0, 1e-4)
        assert rounding[0] <= row["difference"] < rounding[1], name
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert rows["ours eager"]["ratio"] == 1 and len(rows["ours eager"]["quartiles_ms"]) == 2
    text = out.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in rows)
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_another_function_is_not_timed():
    case = next(case for case in CASES if case.name == CASE)
    ours = [np.ones(3)]
    same, other = (Candidate(name, lambda: lambda case: []) for name in ("same", "other"))
    check(case, same, ours, [np.ones(3)])
    assert same.difference == 0
    with pytest.raises(InputError, match="0.01") as caught:
        check(case, other, ours, [np.full(3, 1.01)])
    assert (caught.value.code, caught.value.where) == ("checkpoint-mismatch", "other")


def test_machines_have_sections_and_a_case_is_renewed():
    def case(name: str, ratio: float) -> dict:
        row = dict(median_ms=1.0, images_per_s=1e3, ratio_quartiles=[1, 1], peak_mib=1)
        row |= dict(difference=0.0, rounds=3)
        names = {"ours eager": 1.0, "ours fused": 0.8, "timm eager": ratio, "onnxruntime": 0.5}
        rows = [row | dict(name=name, ratio=value) for name, value in names.items()]
        return dict(case=name, dtype="fp32", others=0.0, candidates=rows)

    def head(device: str) -> dict:
        facts = dict(device=device, threads=2, instructions="AVX2", flags=["avx2"])
        return facts | dict(python="3.11", versions=dict(torch="2.11"))

    report: dict = dict(machines=[])
    for device, name, ratio in (
        ("old", "one", 2.0), ("new", "two", 3.0), ("new", "one", 4.0), ("new", "one", 1.6),
    ):  # fmt: skip
        add(report, head(device), case(name, ratio), ["one", "two"])
    assert [s["machine"]["device"] for s in report["machines"]] == ["new", "old"]
    renewed = report["machines"][0]["cases"]
    assert [each["case"] for each in renewed] == ["one", "two"]
    ours, other = fastest(renewed[0])
    assert (ours["name"], other["name"], other["ratio"]) == ("ours fused", "timm eager", 1.6)
    text = markdown(report, Path("missing.json"))
    assert text.index("## new (avx2), 2") < text.index("## old (avx2), 2")
    assert "| one | 0.50 | timm eager | 0.62 |  |  |  |" in text


def test_bad_arguments_are_named():
    assert_error(run_here("speed.py", "--only", "UperNetty"), "bad-argument", "UperNetty")
    outcome = run_here("speed.py", "--list")
    assert "Cascade Mask R-CNN train 1x480x640 bf16" in outcome.out


def test_a_gpu_is_needed_to_measure_one():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_error(run_here("gpu.py", "--quick"), "unsupported", "GPU")
