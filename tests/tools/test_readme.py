"""README's table of speed says what docs/performance.json does, against the fastest library."""

import json
import re

import pytest
from support.running import REPOSITORY

from benchmarks.results import fastest

CLAIMED = re.findall(
    r"^\| (.+ (?:fp32|bf16)) \| (.+) \| ([\d.]+(?:-[\d.]+)?) \|$",
    (REPOSITORY / "README.md").read_text(),
    re.M,
)
REPORT = json.loads((REPOSITORY / "docs" / "performance.json").read_text())


def measured(name: str) -> list[tuple[str, float]]:
    """Return the fastest library and the time of ours to it, for each machine of the case."""
    cases = [c for s in REPORT["machines"] for c in s["cases"] if c["case"] == name]
    pairs = [fastest(case) for case in cases]
    return [(other["name"], ours["ratio"] / other["ratio"]) for ours, other in pairs]


def test_every_task_is_told_at_both_precisions():
    cases = [case for case, *_ in CLAIMED]
    for model in ("ConvNeXt-tiny", "Cascade Mask R-CNN", "UperNet"):
        for work in ("inference", "train"):
            for precision in ("fp32", "bf16"):
                of = [case for case in cases if case.startswith(model) and work in case]
                assert any(case.endswith(precision) for case in of), (model, work, precision)


@pytest.mark.parametrize("case, peers, range_", CLAIMED, ids=[row[0] for row in CLAIMED])
def test_the_peers_are_the_fastest_and_the_figures_are_measured(case, peers, range_):
    found = measured(case)
    assert peers.split(", ") == list(dict.fromkeys(name for name, _ in found))
    ratios = {f"{ratio:.2f}" for _, ratio in found}
    assert range_ == "-".join(sorted({min(ratios), max(ratios)}))
