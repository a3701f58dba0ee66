"""The steps of `make demo`: what a tool's log lines become, and how a step that fails ends."""

import pytest
from support.running import REPOSITORY

from backbones.openmmlab import steps

TRAIN = (
    "11/30 06:05:47 - mmengine - INFO - Epoch(train)  [1][20/80]  base_lr: 3.9e-04 lr: 3.9e-04  "
    "eta: 0:10:15  time: 0.6549  data_time: 0.0286  loss: 4.3090  loss_rpn_cls: 0.6120"
)


@pytest.mark.parametrize(
    "line, shown",
    [
        (TRAIN, "epoch 1, 20 of 80, 0:10:15 left, loss 4.3090"),
        ("INFO - Iter(train) [  20/1000]  eta: 0:07:00", "20 of 1000, 0:07:00 left"),
        ("Epoch(val) [12][8/8]    top1: 100.0", "epoch 12, 8 of 8 validated"),
        ("Epoch(test) [50/64]    eta: 0:00:02  time: 0.1", "50 of 64, 0:00:02 left"),
        ("[18/19] 000000000018.jpg: 4 objects", "18 of 19"),
        ('WARNING - "FileClient" will be deprecated in future.', ""),
        ("index created!", ""),
    ],
)
def test_progress_of_log_lines(line, shown):
    assert steps.progress(line) == shown


def test_a_step_prints_its_command_and_progress(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "EVERY", 0)
    few = ("demo", "--train", 2, "--val", 1, "--size", 64)
    steps.run_step("1 of 1: draw", REPOSITORY / "tools" / "prepare_data.py", *few)
    title, command, *lines = capfd.readouterr().out.strip().splitlines()
    assert title == "1 of 1: draw"
    assert command == "$ convnext prepare-data demo --train 2 --val 1 --size 64"
    assert lines and all(" s  " in line for line in lines)
    assert any(line.endswith("0 of 2") for line in lines)
    assert (tmp_path / "data" / "demo" / "demo.json").is_file()


def test_a_step_that_fails_ends_with_its_status_and_what_it_said(capfd, tmp_path):
    tool = REPOSITORY / "tools" / "prepare_data.py"
    with pytest.raises(SystemExit) as stopped:
        steps.run_step("1 of 1: draw", tool, "demo", "--root", tmp_path, "--size", 1)
    assert stopped.value.code == 2
    assert "--size 1" in capfd.readouterr().err
