"""What `make gpu` does with parts that fail or take too long, on any machine."""

import os
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from backbones.openmmlab.data.shapes import prepare_demo
from benchmarks.gpu import MINUTES, PARTS, earlier, json_lines, run, wrong_values
from benchmarks.gpu_page import page
from benchmarks.overfits import PASSES, SCORES, SPLITS, STEPS, overfit

SLOW = """
import subprocess, sys, time
worker = subprocess.Popen(["sleep", "600"])
rows = '{"passed": true}', f'{{"pid": {worker.pid}}}', '{"passed": tr'
with open(sys.argv[1], "w") as file:
    print(*rows, sep="\\n", end="", file=file)
time.sleep(600)
"""


def ended(pid: int) -> bool:
    """Return whether a process is gone, or waits for its parent to note it."""
    path = Path(f"/proc/{pid}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads Linux's /proc")
def test_a_part_that_takes_too_long_is_cut_off_and_its_results_are_kept(tmp_path):
    rows = tmp_path / "rows.jsonl"
    note = run([sys.executable, "-c", SLOW, str(rows)], 0.1)
    assert note is not None and note.startswith("cut off after 0.")
    first, second = json_lines(rows)
    assert first == {"passed": True}
    for _ in range(100):  # a signal takes a moment
        if ended(second["pid"]):
            break
        time.sleep(0.1)
    assert ended(second["pid"])


def test_a_part_that_fails_is_named_with_its_last_line():
    note = run([sys.executable, "-c", "raise ValueError('too wide')"], 1.0)
    assert note == "ended with status 1: ValueError: too wide"
    assert run([sys.executable, "-c", "print('well')"], 1.0) is None
    report = dict(machine=dict(device="GPU", python="3", versions={}), notes=dict(models=note))
    assert f"- `--parts models`: {note}" in page(report)


def test_parts_fit_into_25_minutes():
    assert 0 < sum(PARTS.values()) <= MINUTES <= 24.5


def test_nothing_is_timed_unless_all_values_are_right():
    rows = [dict(name="V1", passed=True), dict(name="V2", passed=False)]
    error = wrong_values(dict(values=rows, notes={}))
    assert error is not None and error.where == "V2"
    error = wrong_values(dict(values=rows[:1], notes=dict(values="cut off")))
    assert error is not None and error.where == "values"
    assert wrong_values(dict(values=rows[:1], notes={})) is None


def test_results_of_another_machine_are_not_kept(tmp_path):
    head = dict(device="GPU")
    (tmp_path / "page.json").write_text('{"machine": {"device": "GPU"}, "depthwise": [1]}')
    assert earlier(tmp_path / "page", head)["depthwise"] == [1]
    assert earlier(tmp_path / "page", dict(device="other")) == dict(machine=dict(device="other"))
    assert earlier(tmp_path / "nothing", head) == dict(machine=head)


@pytest.mark.parametrize("task", SCORES)
def test_photographs_are_learnt_and_scored_three_times(task, tmp_path):
    prepare_demo(tmp_path, 64, 2, 1, seed=0)
    for name in ("coco_mini", "ade_mini"):
        (tmp_path / name).symlink_to("demo")
    command = overfit(task, tmp_path, tmp_path)
    config = Config.fromfile(command[2])
    whole = dict(detection=PASSES, segmentation=STEPS)[task]
    assert config.train_cfg.val_interval == whole // 3 > 0
    data = Path(command[command.index("--data") + 1])
    trained, scored = (sorted((data / folder).glob("*.jpg")) for folder in SPLITS[task])
    assert len(trained) == 2 and [p.name for p in trained] == [p.name for p in scored]
