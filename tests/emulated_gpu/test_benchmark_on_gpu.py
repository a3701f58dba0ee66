"""Run what `make gpu` can do on a GPU that has no speed."""

import pytest
import torch

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start


def test_checks_of_make_gpu(gpu, tmp_path):
    from benchmarks import gpu_checks
    from benchmarks.gpu import json_lines, wrong_values
    from benchmarks.gpu_page import page
    from benchmarks.results import machine

    gpu_checks.main(["values", str(tmp_path / "rows.jsonl"), "--quick"])
    rows = json_lines(tmp_path / "rows.jsonl")
    assert [row["passed"] for row in rows] == [True] * 4
    assert all(0 < e <= b for r in rows for e, b in zip(r["error"], r["allowed"], strict=True))
    report = dict(machine=machine("cuda"), notes={}, values=rows)
    assert wrong_values(report) is None
    text = page(report)
    assert "no-op GPU" in text and " ms" not in text and "images/s" not in text


def test_kernels_are_timed_behind_others(gpu, monkeypatch):
    """Check what is called how often; a time on this GPU is always a millisecond."""
    from benchmarks import gpu_checks

    monkeypatch.setattr(gpu_checks, "FILLED", 64)
    calls = []
    assert gpu_checks.seconds_of_kernels(lambda: calls.append(gpu.ops["aten.zero_"])) == 1e-3
    assert calls == [0] * 3 + list(range(1, gpu_checks.REPEATS + 1))


def test_a_wrong_value_fails(gpu):
    from benchmarks.gpu_checks import errors

    exact = ([torch.ones(3).double()], [torch.ones(2).double()])
    found = ([torch.tensor([1.0, 1.0, 1.5]).double()], [torch.ones(2).double()])
    assert errors(found, exact) == [pytest.approx((0.25 / 3) ** 0.5), 0.0]
