"""The bar: in a terminal only, with its figures; and the trackers, read back."""

import os
import pty
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from support.forked import run_forked
from support.running import SEGMENTATION, assert_error, command, run_here, run_tool

FEW = (
    "train_cfg.max_iters=6", "train_cfg.val_interval=3", "train_dataloader.batch_size=2",
    "default_hooks.checkpoint.interval=6", "default_hooks.logger.interval=1",
    "default_hooks.report.pictures=0", "randomness.seed=0",
    *(
        f"{split}_dataloader.{key}"
        for split in ("train", "val")
        for key in ("num_workers=0", "persistent_workers=False")
    ),
)  # fmt: skip


def in_a_terminal(argv: list[str], cwd: Path, columns: int) -> tuple[int, str]:
    """Run a command whose output is a terminal: its status, and all that was written there."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        argv, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    return process.wait(timeout=60), written.decode()


def plain(text: str) -> str:
    """Without what moves the cursor and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_a_bar_in_a_terminal(shapes, tmp_path):
    argv = command("train.py", SEGMENTATION, "--data", shapes, "--work-dir", "run", "--cfg-options")
    status, written = in_a_terminal([*argv, *FEW], tmp_path, columns=120)
    text = plain(written)
    assert status == 0, text
    assert re.search(r"train .* 6/6 0:00:\d\d left +[\d.]+ images/s +[\d.]+ GiB +loss [\d.]+", text)
    assert re.search(r"validate .* 4/4 ", text)
    assert re.search(r"train .* [456]/6 .* mIoU [\d.]+", text)  # the last score stays in sight
    # The bar's own lines fit into one; the log's other lines stay, those of iterations do not.
    assert "Saving checkpoint" in text
    assert not re.search(r"Iter\(train\)", text) and re.search(r"Iter\(val\).* mIoU: ", text)
    (log,) = (tmp_path / "run").glob("*/*.log")
    assert len(re.findall(r"Iter\(train\)", log.read_text())) == 6
    assert "\x1b[?25l" in written and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


@pytest.mark.slow
def test_a_mistake_leaves_the_terminal_in_order(shapes, tmp_path):
    import shutil

    data = Path(shutil.copytree(shapes, tmp_path / "data"))
    for path in (data / "images" / "validation").iterdir():
        path.write_text("not an image")
    argv = command("train.py", SEGMENTATION, "--data", data, "--work-dir", "run", "--cfg-options")
    status, written = in_a_terminal([*argv, *FEW], tmp_path, columns=80)
    assert status == 2
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    last = plain(written).replace("\r", "").strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in written


@pytest.mark.slow
def test_plain_lines_in_a_pipe_and_figures_in_tensorboard(shapes, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = (SEGMENTATION, "--data", shapes, "--work-dir", "run", "--track", "tensorboard")
    outcome = run_forked("train.py", *arguments, "--cfg-options", *FEW, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "\x1b[?25" not in outcome.out and "images/s" not in outcome.out
    logged = re.findall(r"Iter\(train\) \[(\d)/6\].*? loss: ([\d.]+)", outcome.out)
    assert [int(step) for step, _ in logged] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(next((tmp_path / "run").glob("*/vis_data"))))
    events.Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx(
        [float(loss) for _, loss in logged], abs=1e-4
    )
    scores = [float(x) for x in re.findall(r" mIoU: ([\d.]+)", outcome.out)]
    assert [event.value for event in events.Scalars("mIoU")] == pytest.approx(scores, abs=1e-4)
    assert "UPerHead" in str(events.Tensors("config/text_summary")[0]) or events.Tags()["tensors"]


@pytest.mark.slow
def test_figures_in_mlflow(shapes, tmp_path):
    """In one database beside the work dirs; MLflow 3 refuses files, mmengine's default."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # which mlflow-skinny lacks
    arguments = (SEGMENTATION, "--data", shapes, "--work-dir", "runs/one", "--track", "mlflow")
    outcome = run_forked("train.py", *arguments, "--cfg-options", *FEW, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    logged = re.findall(r"Iter\(train\) \[(\d)/6\].*? loss: ([\d.]+)", outcome.out)
    with closing(sqlite3.connect(tmp_path / "runs" / "mlflow.db")) as database:
        kept = database.execute("select step, value from metrics where key = 'loss'").fetchall()
        assert database.execute("select name from runs").fetchall() == [("one",)]
    assert [step for step, _ in sorted(kept)] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in sorted(kept)] == pytest.approx(
        [float(loss) for _, loss in logged], abs=1e-4
    )
    assert list((tmp_path / "runs" / "mlflow").rglob("config.py"))


@pytest.mark.slow
def test_figures_in_wandb(shapes, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = (SEGMENTATION, "--data", shapes, "--work-dir", "run", "--track", "wandb")
    outcome = run_tool("train.py", *arguments, "--cfg-options", *FEW, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert re.search(r"wandb: +iter 6\n", outcome.out + outcome.err)
    assert list((tmp_path / "run").rglob("run-*.wandb"))


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(tracker, tmp_path):
    from importlib.util import find_spec

    if find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    outcome = run_here("train.py", SEGMENTATION, "--work-dir", tmp_path / "run", "--track", tracker)
    assert_error(outcome, "missing-package", f"--track {tracker}", f"pip install {tracker}")
    assert not (tmp_path / "run").exists()


def test_unknown_tracker(tmp_path):
    outcome = run_here("train.py", SEGMENTATION, "--track", "paper")
    assert outcome.status == 2 and "tensorboard" in outcome.err
