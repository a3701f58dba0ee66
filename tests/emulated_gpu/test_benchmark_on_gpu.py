"""Run what `make gpu` can do on a GPU that has no speed."""

import json

import pytest
import torch

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start


def test_checks_of_make_gpu(gpu, tmp_path):
    from benchmarks import gpu as program

    program.main(["--quick", "--out", str(tmp_path / "page")])
    report = json.loads((tmp_path / "page.json").read_text())
    assert [row["passed"] for row in report["checks"]] == [True] * 4
    assert all(
        0 < e <= b for r in report["checks"] for e, b in zip(r["error"], r["allowed"], strict=True)
    )
    assert not {"depthwise", "speed", "overfits"} & set(report)
    page = (tmp_path / "page.md").read_text()
    assert "no-op GPU" in page and " ms" not in page and "images/s" not in page


def test_a_wrong_value_fails(gpu):
    from benchmarks.gpu_checks import errors

    exact = ([torch.ones(3).double()], [torch.ones(2).double()])
    found = ([torch.tensor([1.0, 1.0, 1.5]).double()], [torch.ones(2).double()])
    assert errors(found, exact) == [pytest.approx((0.25 / 3) ** 0.5), 0.0]
