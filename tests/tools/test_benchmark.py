"""The benchmark: what it writes, and that it times nothing which computes another function."""

import json
import runpy
import sys
from functools import partial

import pytest
import torch
from support.running import REPOSITORY, run_here

from backbones import InputError

WORK = "ConvNeXt-tiny inference 1x512x512 fp32"


@pytest.fixture
def tool(monkeypatch):
    """The tool's names."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    return runpy.run_path(str(REPOSITORY / "benchmarks" / "speed.py"))


@pytest.mark.slow
def test_every_peer_gives_our_output_and_all_figures_are_written(tmp_path):
    out = tmp_path / "folder" / "report"
    arguments = ("--only", WORK, "--rounds", 2, "--ways", "eager", "channels-last", "--out", out)
    outcome = run_here("speed.py", *arguments)
    assert outcome.status == 0, outcome.err
    report = json.loads(out.with_suffix(".json").read_text())
    assert {"device", "threads", "versions"} <= set(report["machine"])
    (work,) = report["works"]
    rows = {row["name"]: row for row in work["contenders"]}
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


def test_another_function_is_not_timed(tool):
    work = next(w for w in tool["WORKS"] if w.name.endswith(WORK))

    def run(work, scale):
        return [scale * torch.ones(3)]

    same = [tool["Contender"](name, partial(run, work, 1.0)) for name in ("first", "second")]
    tool["check"](work, same)
    other = tool["Contender"]("third", partial(run, work, 1.01))
    with pytest.raises(InputError, match="third differs from first by 0.01"):
        tool["check"](work, [*same, other])


def test_bad_arguments_are_named():
    outcome = run_here("speed.py", "--only", "UperNetty")
    assert outcome.status == 2 and "matches no work" in outcome.last_line
    outcome = run_here("speed.py", "--list")
    assert "Cascade Mask R-CNN train 1x480x640 bf16" in outcome.out
