"""What a run does when the machine or the data fails it, through the training tool itself."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from support.forked import Forked, run_forked
from support.running import REPOSITORY, assert_error, command, free_port, run_here
from support.small_runs import write_config
from torch.utils.data import DataLoader, Dataset

from backbones.openmmlab.training.data_workers import raising_worker_deaths
from backbones.openmmlab.training.ranks import lost_process_error
from backbones.weights import read_checkpoint

# Spoils images by name: the loss of a batch with one of them is not a number.
POISON = """
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module()
class Poison:
    def __init__(self, names):
        self.names = names

    def __call__(self, results):
        results["img"] = results["img"].astype("float32")
        if any(name in results["img_path"] for name in self.names):
            results["img"][::8, ::8] = float("nan")
        return results
"""


class Started:
    """A tool in processes of its own, for what is done to it from outside."""

    def __init__(self, arguments: tuple, cwd: Path, processes: int = 1, tool: str = "train.py"):
        self.log = cwd / f"log{len(list(cwd.glob('log*')))}"
        self.processes, port = [], str(free_port())
        for rank in range(processes):
            env = dict(os.environ)
            argv = command(tool, *arguments)[1:]
            if processes > 1:
                env |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
                env |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                argv += ["--launcher", "pytorch"]
            self.processes.append(Forked(argv, cwd, self.log, self.log, env))

    def reach(self, pattern: str) -> None:
        while not (self.log.exists() and re.search(pattern, self.log.read_text())):
            assert all(p.poll() is None for p in self.processes), self.log.read_text()[-3000:]
            time.sleep(0.02)

    def statuses(self) -> list[int]:
        return [process.wait(timeout=900) for process in self.processes]

    def workers(self) -> list[int]:
        pid = self.processes[0].pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]


def error_line(text: str) -> str:
    """The last line of a log that a mistake has ended; there is no traceback."""
    assert "Traceback" not in text, text[-3000:]
    return [line for line in text.splitlines() if re.match(r"error: .* \[[a-z-]+\]$", line)][-1]


@pytest.mark.slow
def test_disk_full_while_saving(shapes, tmp_path):
    """The second of two checkpoints does not fit: the first stays, and is enough to go on from."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        config = write_config(tmp_path, "segmentation")
        arguments = (config, "--data", shapes, "--work-dir", disk / "run")
        first = run_forked(
            "train.py", *arguments, "--cfg-options", "train_cfg.max_iters=2", cwd=tmp_path
        )
        assert first.status == 0, first.err[-2000:]
        size = (disk / "run" / "iter_2.pth").stat().st_size
        remount = ["mount", "-o", f"remount,size={int(size * 1.6)}", str(disk)]
        subprocess.run(remount, check=True)
        full = run_forked("train.py", *arguments, "--resume", cwd=tmp_path)
        assert_error(full, "no-space", disk / "run" / "iter_4.pth")
        assert [p.name for p in (disk / "run").glob("*.pth*")] == ["iter_2.pth"]
        assert not list((disk / "run").glob(".*"))
        read_checkpoint(disk / "run" / "iter_2.pth")
        subprocess.run(["mount", "-o", "remount,size=99m", str(disk)], check=True)
        again = run_forked("train.py", *arguments, "--resume", cwd=tmp_path)
        assert again.status == 0 and "iter: 2" in again.out, again.err[-2000:]
        assert (disk / "run" / "last_checkpoint").read_text().endswith("iter_6.pth")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_signal_ends_all_processes_at_one_step(sent, status, processes, shapes, tmp_path):
    if processes == 2 and sent is signal.SIGUSR1:
        pytest.skip("as SIGTERM")
    config = write_config(tmp_path, "segmentation")
    options = ["train_cfg.max_iters=500", "default_hooks.checkpoint.interval=500"]
    options += ["train_dataloader.num_workers=1"]
    arguments = (config, "--data", shapes, "--work-dir", "run", "--cfg-options")
    run = Started((*arguments, *options), tmp_path, processes)
    run.reach(r"Iter\(train\) +\[ *2/")
    if processes == 1:  # as a terminal and Slurm do: the data workers get it too
        os.killpg(run.processes[0].pid, sent)
    else:  # one process hears of it
        run.processes[1].send_signal(sent)
    assert run.statuses() == [status] * processes
    text = run.log.read_text()
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if "interrupted.pth" in line]
    assert sent.name in line
    saved = read_checkpoint(tmp_path / "run" / "interrupted.pth")
    step = saved["meta"]["iter"]
    assert f" {step}," in line and len(saved["training_state"]["processes"]) == processes
    if processes == 1 and sent is signal.SIGTERM:
        options[0] = f"train_cfg.max_iters={step + 1}"
        arguments = (config, "--data", shapes, "--work-dir", "run", "--resume", "--cfg-options")
        again = run_forked("train.py", *arguments, *options, cwd=tmp_path)
        assert again.status == 0, again.err[-2000:]
        assert f"resumed epoch: 0, iter: {step}" in again.out
        assert [p.name for p in (tmp_path / "run").glob("*.pth")] == [f"iter_{step + 1}.pth"]


@pytest.mark.slow
def test_killed_process_ends_the_others_within_a_minute(shapes, tmp_path):
    config = write_config(tmp_path, "segmentation", "train_cfg['max_iters'] = 500")
    run = Started((config, "--data", shapes, "--work-dir", "run"), tmp_path, 2)
    run.reach(r"Saving checkpoint at 4")
    run.processes[1].kill()
    begin = time.monotonic()
    assert run.processes[0].wait(timeout=60) == 2
    assert time.monotonic() - begin < 60
    line = error_line(run.log.read_text())
    assert line.endswith("[lost-process]") and "rank 0" in line
    last = Path((tmp_path / "run" / "last_checkpoint").read_text())
    done = read_checkpoint(last)["meta"]["iter"]
    options = ("--cfg-options", f"train_cfg.max_iters={done + 1}")
    arguments = (config, "--data", shapes, "--work-dir", "run", "--resume", *options)
    again = Started(arguments, tmp_path, 2)
    assert again.statuses() == [0, 0], again.log.read_text()[-2000:]
    assert f"resumed epoch: 0, iter: {done}" in again.log.read_text()


class DyingSlowly(Dataset):
    """Its data worker first shuts the door through which tensors leave it, then is killed."""

    def __init__(self):
        self.shut = multiprocessing.Event()

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            time.sleep(0.2)  # the first item is on its way
            resource_sharer.stop(timeout=10)
            self.shut.set()
            time.sleep(0.8)
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(8)


def assert_worker_killed(error: Exception) -> None:
    found = lost_process_error(error)
    assert found.code == "lost-process" and found.where.startswith("DataLoader worker ")
    assert "SIGKILL" in str(found)


def test_connections_of_a_data_worker_that_close_before_its_death():
    images = DyingSlowly()
    with pytest.raises(RuntimeError) as caught, raising_worker_deaths():
        batches = iter(DataLoader(images, num_workers=1))
        assert images.shut.wait(10)
        next(batches)
    assert_worker_killed(caught.value)


def test_death_of_a_data_worker_interrupts_nothing_but_waiting_for_data():
    batches = iter(DataLoader(torch.zeros(1000, 8), num_workers=2))
    time.sleep(0.2)  # it has read ahead
    steps = 0
    with pytest.raises(RuntimeError) as caught, raising_worker_deaths():
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        while steps < 5:
            time.sleep(0.1)
            steps += 1
        for _ in batches:
            pass
    assert steps == 5
    assert_worker_killed(caught.value)


def test_data_worker_that_dies_with_a_lock_holds_up_nobody():
    batches = iter(DataLoader(torch.zeros(1000, 8), num_workers=1))
    time.sleep(0.2)
    lock = batches._workers_done_event._cond
    with lock, pytest.raises(RuntimeError) as caught, raising_worker_deaths():
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        time.sleep(0.3)
        for _ in batches:
            pass
    assert_worker_killed(caught.value)


def assert_killed_worker_named(text: str, worker: int) -> None:
    line = error_line(text)
    assert line.endswith("[lost-process]")
    for words in (f"DataLoader worker {worker}", "SIGKILL", "num_workers"):
        assert words in line, line


@pytest.mark.slow
def test_killed_data_worker_is_named_as_such(shapes, tmp_path):
    config = write_config(tmp_path, "segmentation", "train_cfg['max_iters'] = 500")
    options = ("--cfg-options", "train_dataloader.num_workers=2")
    run = Started((config, "--data", shapes, "--work-dir", "run", *options), tmp_path)
    run.reach(r"Iter\(train\) +\[ *2/")
    killed = run.workers()[0]
    os.kill(killed, signal.SIGKILL)
    assert run.statuses() == [2]
    assert_killed_worker_named(run.log.read_text(), killed)


@pytest.mark.slow
def test_killed_data_worker_of_an_evaluation_is_named_too(shapes, tmp_path):
    config = write_config(tmp_path, "segmentation", "train_cfg['max_iters'] = 2")
    arguments = (config, "--data", shapes, "--work-dir", "run")
    trained = run_forked("train.py", *arguments, cwd=tmp_path)
    assert trained.status == 0, trained.err[-2000:]
    options = ("--cfg-options", "test_dataloader.num_workers=2")
    arguments = (config, tmp_path / "run" / "iter_2.pth", *arguments[1:], *options)
    run = Started(arguments, tmp_path, tool="test.py")
    while len(run.workers()) < 2:
        assert run.processes[0].poll() is None, run.log.read_text()[-3000:]
    killed = run.workers()[0]
    os.kill(killed, signal.SIGKILL)
    assert run.statuses() == [2]
    assert_killed_worker_named(run.log.read_text(), killed)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_images_are_skipped_counted_and_listed(processes, shapes, tmp_path):
    data = Path(shutil.copytree(shapes, tmp_path / "data"))
    images = sorted((data / "images" / "training").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:50])
    labels = data / "annotations" / "training" / f"{images[4].stem}.png"
    labels.write_bytes(labels.read_bytes()[:50])
    config = write_config(tmp_path, "segmentation")
    workers = ("--cfg-options", "train_dataloader.num_workers=1", "train_cfg.max_iters=8")
    arguments = (config, "--data", data, "--work-dir", "run", "--skip-bad-images", *workers)
    run = Started(arguments, tmp_path, processes)
    assert run.statuses() == [0] * processes, run.log.read_text()[-3000:]
    path = tmp_path / "run" / "unreadable_images.txt"
    lines = path.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [str(labels), str(images[1])]
    assert f": 2, listed in {path}" in run.log.read_text()
    if processes == 1:
        stopped = run_forked("train.py", *arguments[:4], "again", *workers, cwd=tmp_path)
        assert_error(stopped, "bad-image")
        assert images[1].name in stopped.last_line or labels.name in stopped.last_line


@pytest.mark.slow
@pytest.mark.parametrize("processes, strategy", [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_non_finite_steps_are_skipped_and_many_end_the_run(
    processes, strategy, shapes, tmp_path, monkeypatch
):
    (tmp_path / "poison.py").write_text(POISON)
    arguments = ("--root", tmp_path, "--train", 16, "--val", 2, "--size", 64)
    assert run_here("prepare_data.py", "demo", *arguments).status == 0
    names = [p.name for p in sorted((tmp_path / "demo/images/training").iterdir())]
    lines = (
        "custom_imports = dict(imports=[*_base_.custom_imports.imports, 'poison'])",
        "custom_hooks = [*_base_.custom_hooks, dict(type='NonFiniteHook', limit=2)]",
        "train_dataloader['sampler'] = dict(shuffle=False)",
        "steps = train_dataloader['dataset']['pipeline']",
        f"steps.insert(1, dict(type='Poison', names={names[8:]}))",
        "default_hooks['checkpoint'] = dict(interval=1, max_keep_ckpts=1)",
        "del steps",
    )
    config = write_config(tmp_path, "segmentation", *lines, "train_cfg['max_iters'] = 20")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    arguments = (config, "--data", tmp_path / "demo", "--work-dir", "run", "--strategy", strategy)
    run = Started(arguments, tmp_path, processes)
    assert run.statuses() == [2] * processes
    text = run.log.read_text()
    good = 4 // processes  # steps on the first half of the images
    line = error_line(text)
    assert line.endswith("[not-finite]")
    for words in (
        f"iteration {good + 2}",
        names[2 * processes * (good + 1)],
        "decode.loss_ce nan",
        "data_preprocessor",
    ):
        assert words in line, line
    assert text.count("(1 skipped so far, 1 in a row)") == 1
    assert "skipped_steps: 1" in text
    saved = read_checkpoint(tmp_path / "run" / f"iter_{good + 1}.pth")
    before = [v for v in saved["state_dict"].values() if v.is_floating_point()]
    assert all(bool(torch.isfinite(v).all()) for v in before)
    # The skipped step before it has changed nothing: AdamW has counted the good ones.
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {good}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_with_nothing_in_them(processes, shapes, tmp_path):
    """No boxes, crowds alone, every sample dropped in every block, and no predictions at all."""
    data = Path(shutil.copytree(shapes, tmp_path / "data"))
    path = data / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    ids = sorted(image["id"] for image in content["images"])
    # The last image keeps its objects: a set without any is refused before training.
    crowds = set(ids[4:-1])
    content["annotations"] = [
        {**row, "iscrowd": int(row["image_id"] in crowds)}
        for row in content["annotations"]
        if row["image_id"] in ids[4:]
    ]
    assert {row["iscrowd"] for row in content["annotations"]} == {0, 1}
    path.write_text(json.dumps(content))
    lines = (
        "train_dataloader['dataset'] = dict(filter_cfg=dict(filter_empty_gt=False))",
        "train_dataloader['sampler'] = dict(shuffle=False)",
        "model['backbone']['drop_path_rate'] = 0.999999",
        "model['test_cfg']['rcnn']['score_thr'] = 1.0",
    )
    config = write_config(tmp_path, "detection", *lines)
    run = Started((config, "--data", data, "--work-dir", "run"), tmp_path, processes)
    assert run.statuses() == [0] * processes, run.log.read_text()[-3000:]
    text = run.log.read_text()
    losses = [float(x) for x in re.findall(r"\(train\).*? loss: ([\d.einfan]+)", text)]
    assert len(losses) == 8 // processes and all(0 < loss < 100 for loss in losses)
    assert len(re.findall(r"coco/bbox_mAP: 0.0000", text)) == 2


@pytest.mark.slow
def test_bad_weights_are_never_saved(shapes, tmp_path, monkeypatch):
    (tmp_path / "spoil.py").write_text(
        "import torch\n"
        "from mmengine.hooks import Hook\n"
        "from mmengine.registry import HOOKS\n"
        "@HOOKS.register_module()\n"
        "class Spoil(Hook):\n"
        "    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):\n"
        "        if runner.iter == 3:\n"
        "            next(runner.model.parameters()).data.view(-1)[0] = float('inf')\n"
    )
    config = write_config(
        tmp_path,
        "segmentation",
        "custom_imports = dict(imports=[*_base_.custom_imports.imports, 'spoil'])",
        "custom_hooks = [*_base_.custom_hooks, dict(type='Spoil')]",
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    done = run_forked("train.py", config, "--data", shapes, "--work-dir", "run", cwd=tmp_path)
    assert_error(done, "not-finite", "iter_4.pth")
    assert [p.name for p in (tmp_path / "run").glob("*.pth")] == ["iter_2.pth"]


def test_what_is_lost_is_told_from_other_errors():
    def lost(text: str, cause: str | None = None) -> tuple[str, str]:
        error = RuntimeError(text)
        error.__context__ = cause and RuntimeError(cause)
        found = lost_process_error(error)
        assert found.code == "lost-process"
        return found.where, str(found)

    where, text = lost("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert where == "DataLoader worker 7" and "SIGKILL" in text
    several = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"
    where, text = lost(several)
    assert where == "DataLoader worker 7, 8" and "SIGKILL" in text
    where, text = lost(several, "DataLoader worker (pid 8) is killed by signal: Hangup. ")
    assert where == "DataLoader worker 8" and "Hangup" in text
    where, text = lost("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible")
    assert where == "DataLoader worker 7" and "/dev/shm" in text
    assert lost_process_error(RuntimeError("shape mismatch")) is None
    assert lost_process_error(RuntimeError("Connection closed by peer")) is None  # one rank alone


def test_exit_statuses():
    from backbones.errors import Preempted, reported_in_one_line

    for error, status in ((Preempted("x"), 75), (KeyboardInterrupt("x"), 130)):
        with pytest.raises(SystemExit) as end, reported_in_one_line("go on"):
            raise error
        assert end.value.code == status
