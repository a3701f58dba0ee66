"""The console command `convnext`: its verbs are the tools, and configs have names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import REPOSITORY, Outcome, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.names import config_files, find_config, listed_configs

VERBS = {path.stem.replace("_", "-") for path in (REPOSITORY / "tools").glob("*.py")}


def convnext(*arguments: object, cwd: Path = REPOSITORY, check: str = "") -> Outcome:
    """Run the command in a process of its own, and then `check`."""
    code = f"import sys, convnext_cli\nconvnext_cli.main()\n{check}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_every_verb_and_imports_nothing_heavy(arguments):
    heavy = "print([m for m in ('torch', 'numpy', 'mmengine', 'backbones') if m in sys.modules])"
    outcome = convnext(*arguments, check=heavy)
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "[]"
    assert set(re.findall(r"^  ([\w-]+)  +\S", outcome.out, re.MULTILINE)) == VERBS
    assert {"train", "predict", "prepare-data", "configs"} <= VERBS


def test_version_is_that_of_the_package():
    import backbones

    assert convnext("--version").out.strip() == backbones.__version__


def test_misspelt_verb():
    outcome = convnext("tarin")
    assert_error(outcome, "unknown-name", "tarin", "train")


def test_a_verb_is_its_tool_from_any_folder(tmp_path):
    """Compare with the tool given the path; the usage line names the command."""
    ours = convnext("complexity", "upernet_convnext_atto_demo", "--json", cwd=tmp_path)
    assert ours.status == 0, ours.err
    path = REPOSITORY / "configs" / "segmentation" / "upernet_convnext_atto_demo.py"
    assert json.loads(ours.out) == json.loads(run_here("complexity.py", path, "--json").out)
    wrong = convnext("zoo", "--no-such-option", cwd=tmp_path)
    assert wrong.status == 2 and wrong.err.startswith("usage: convnext zoo ")


def test_a_missing_library_of_opencv_is_one_line(tmp_path):
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    done = subprocess.run(
        [sys.executable, REPOSITORY / "convnext_cli.py", "predict", "x", "y.jpg"],
        env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert_error(outcome, "missing-package", "libGL.so.1", "opencv-python-headless")


def test_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = config_files()
    shipped = [*REPOSITORY.glob("configs/*/*.py")]
    assert len(files) == len([p for p in shipped if p.parent.name != "_base_"]) > 100
    path = REPOSITORY / "configs" / "detection" / "cascade_convnext_t.py"
    for given in ("cascade_convnext_t", "cascade_convnext_t.py", path):
        assert find_config(given) == path
    assert find_config("configs/detection/cascade_convnext_t.py") == path
    assert load_config("cascade_convnext_t").model.type == "CascadeRCNN"
    # A file that is here comes before a name.
    own = tmp_path / "cascade_convnext_t.py"
    own.write_text("x = 1\n")
    assert find_config("cascade_convnext_t.py") == Path(own.name)
    assert find_config("cascade_convnext_t") == path


@pytest.mark.parametrize(
    ("given", "code", "near"),
    [
        ("cascade_convnxt_t", "unknown-name", "cascade_convnext_t"),
        ("upernet_convnext_t_160k", "unknown-name", "upernet_convnext_t_80k"),
        ("configs/detection/cascade_convnext_tt.py", "not-found", "cascade_convnext_t"),
        ("zzz", "unknown-name", "convnext configs"),
    ],
)
def test_misspelt_config_gets_the_nearest(given, code, near):
    with pytest.raises(InputError) as caught:
        find_config(given)
    assert caught.value.code == code and caught.value.where == given
    assert near in str(caught.value) and "\n" not in str(caught.value)


def test_configs_lists_scores_parameters_and_licences():
    assert sorted(each.name for each in listed_configs()) == sorted(config_files())
    outcome = run_here("configs.py", "cascade", "--json")
    assert outcome.status == 0, outcome.err
    rows = {row["name"]: row for row in json.loads(outcome.out)}
    assert all("cascade" in name for name in rows)
    row = rows["cascade_convnext_t"]
    assert (row["score"], row["licence"]) == ("50.4 box AP, 43.7 mask AP", "MIT")
    assert rows["cascade_convnextv2_b"]["licence"] == "CC-BY-NC-4.0"
    assert rows["cascade_convnext_atto_demo"]["weights"] is None
    outcome = run_here("configs.py", "--task", "segmentation")
    assert "upernet_convnext_t " in outcome.out and "60.2 M" in outcome.out
    assert "cascade" not in outcome.out
    assert_error(run_here("configs.py", "no_such_word"), "unknown-name", "no_such_word")


@pytest.mark.parametrize("name", ["convnext_t_in1k", "cascade_swin_t", "roadmap_resnet200"])
def test_listed_parameters_are_those_of_the_model(name):
    """The detectors and segmentors with ConvNeXt are compared where they are counted."""
    from backbones.openmmlab.doctor.complexity import build_on_meta

    model = build_on_meta(load_config(name))
    (listed,) = (each for each in listed_configs() if each.name == name)
    assert listed.parameters == sum(p.numel() for p in model.parameters()) > 10**7
    assert next(model.parameters()).device == torch.device("meta")
