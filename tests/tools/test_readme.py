"""README's table of speed says what docs/performance.md does, against the fastest other library."""

import re

import pytest
from support.running import REPOSITORY

ROW = re.compile(r"^\| (.+?) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| [\d.]+-[\d.]+ \|", re.M)
CLAIMED = re.findall(
    r"^\| (.+ (?:fp32|bf16)) \| (.+) \| (.+) ([\d.]+) \|$",
    (REPOSITORY / "README.md").read_text(),
    re.M,
)


def measured(case: str) -> dict[str, str]:
    """Return the ratios of a case of docs/performance.md, of candidates at its own precision."""
    text = (REPOSITORY / "docs" / "performance.md").read_text()
    (section,) = (part for part in text.split("\n## ") if part.startswith(f"{case}\n"))
    suffix = " bf16" if case.endswith("bf16") else ""
    ratios = ROW.findall(section)
    return {name.removesuffix(suffix): ratio for name, ratio in ratios if name.endswith(suffix)}


def test_every_task_is_told_at_both_precisions():
    cases = [case for case, *_ in CLAIMED]
    for model in ("ConvNeXt-tiny", "Cascade Mask R-CNN", "UperNet"):
        for work in ("inference", "train"):
            for precision in ("fp32", "bf16"):
                of = [case for case in cases if case.startswith(model) and work in case]
                assert any(case.endswith(precision) for case in of), (model, work, precision)


@pytest.mark.parametrize("case, ours, peer, ratio", CLAIMED, ids=[row[0] for row in CLAIMED])
def test_the_peer_is_the_fastest_and_the_figures_are_measured(case, ours, peer, ratio):
    found = measured(case)
    others = {name: float(value) for name, value in found.items() if not name.startswith("ours")}
    assert peer == min(others, key=lambda name: others[name]) and ratio == found[peer]
    own = [value for name, value in found.items() if name.startswith("ours")]
    assert re.findall(r"\d\.\d+", ours) == own
