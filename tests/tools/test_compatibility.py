"""Check the compatibility program: families on both branches, its table and its errors."""

import json
from importlib.util import find_spec

import pytest
from support.running import REPOSITORY, assert_error, run_here

from backbones.openmmlab import mmcv_ops
from benchmarks.compatibility import Outcome, check, read_outcomes, table
from benchmarks.families import FAMILIES
from benchmarks.narrow_models import stock_config

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

NAMED = {family.name: family for family in FAMILIES}
QUICK = [
    "Faster R-CNN", "RPN", "Fast R-CNN", "Mask R-CNN", "RetinaNet", "FCOS", "FoveaBox", "YOLOX",
    "CenterNet-update", "FSAF", "Semantic FPN", "PSPNet",
]  # fmt: skip
# The published outcomes, and the families of them that take about two minutes together.
PUBLISHED = read_outcomes(REPOSITORY / "docs" / "compatibility")
SHORT = [
    name
    for name, outcome in PUBLISHED.items()
    if outcome.passed and outcome.seconds <= 1.6 and name not in QUICK
]


@pytest.mark.parametrize("name", QUICK)
def test_quick_families(name):
    outcome = check(NAMED[name])
    assert outcome.errors == {} and outcome.untrained == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_short_families(name):
    if NAMED[name].needs == "scikit-learn" and find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    outcome = check(NAMED[name])
    assert outcome.errors == {} and outcome.untrained == []


def test_the_published_table_is_that_of_its_outcomes_with_a_reason_for_each_failure():
    assert len(PUBLISHED) > 90
    for name, outcome in PUBLISHED.items():
        assert outcome.passed != bool(NAMED[name].reason), name
    published = (REPOSITORY / "docs" / "compatibility.md").read_text().splitlines()
    expected = table({f: PUBLISHED[n] for n, f in NAMED.items() if n in PUBLISHED}).splitlines()
    assert published[3:] == expected[3:]  # the third line has the versions of the wheels


def test_families_have_names_and_configs_of_their_own():
    assert len(NAMED) == len(FAMILIES) == 124
    assert len({(family.library, family.config) for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES[::20]:
        assert "model" in stock_config(family.library, family.config)


def test_a_family_that_cannot_work_is_named_with_its_reason():
    family = NAMED["TridentNet"]
    outcome = check(family)
    assert not outcome.passed and all(e.startswith("build: ") for e in outcome.errors.values())
    page = table({family: outcome, NAMED["RPN"]: Outcome(seconds=1.0)})
    assert page.splitlines()[2].startswith(f"2 of the {len(FAMILIES)} ") and " 1 train " in page
    assert "| RPN | yes | yes |" in page and "| TridentNet | no | no |" in page
    assert family.reason in page


def test_families_not_run_keep_their_outcome(tmp_path):
    out = tmp_path / "compatibility"
    earlier = Outcome(operators=["ms_deform_attn"], seconds=9.0)
    out.with_suffix(".json").write_text(json.dumps({"DINO": vars(earlier)}))
    done = run_here("compatibility.py", "--out", out, "--only", "RPN", "--limit", 300)
    assert done.status == 0, done.err
    outcomes = json.loads(out.with_suffix(".json").read_text())
    assert outcomes["DINO"] == vars(earlier) and outcomes["RPN"]["errors"] == {}
    assert "| DINO | yes | yes | `ms_deform_attn` |" in out.with_suffix(".md").read_text()


def test_an_unknown_family_is_named(tmp_path):
    done = run_here("compatibility.py", "--out", tmp_path / "page", "--only", "RetinaNext")
    assert_error(done, "bad-argument", "--only", "RetinaNext")
