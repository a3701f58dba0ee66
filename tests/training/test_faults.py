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
from support.running import (
    DETECTION,
    REPOSITORY,
    SEGMENTATION,
    command,
    free_port,
    run_here,
    run_tool,
)
from torch.utils.data import DataLoader, Dataset

from backbones.openmmlab.training.data_workers import worker_deaths_told
from backbones.openmmlab.training.processes import what_was_lost
from backbones.weights.reading import read_checkpoint

COMMON = """
_base_ = {base!r}
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1))
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""
SMALL = {
    "segmentation": COMMON.format(base=str(SEGMENTATION))
    + """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])),
    decode_head=dict(in_channels=[16, 24, 32, 40], channels=8),
    auxiliary_head=dict(in_channels=32, channels=8),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_cfg = dict(max_iters=6, val_interval=100)
steps = _base_.train_dataloader.dataset.pipeline
crop = dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[*steps[:3], crop, *steps[4:]]),
)
val_dataloader = dict(dataset=dict(indices=1))
default_hooks["checkpoint"] = dict(interval=2)
del steps, crop
""",
    "detection": COMMON.format(base=str(DETECTION))
    + """
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
heads = [{**head, "fc_out_channels": 32} for head in _base_.model.roi_head.bbox_head]
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])),
    neck=dict(in_channels=[16, 24, 32, 40]),
    roi_head=dict(bbox_head=heads, mask_head=dict(conv_out_channels=8)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=50)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.05)),
)
del heads
""",
}
# Spoils pictures by name: the loss of a batch with one of them is not a number.
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


def write_config(folder: Path, task: str, *lines: str) -> Path:
    path = folder / f"{task}.py"
    path.write_text("\n".join([SMALL[task], *lines]))
    return path


def ended(done, *words: str, status: int = 2) -> None:
    assert done.status == status, done.err[-3000:]
    assert "Traceback" not in done.err, done.err[-3000:]
    for word in words:
        assert re.search(word, done.last_line), done.last_line


class Started:
    """A tool in processes of its own, for what is done to it from outside."""

    def __init__(self, arguments: tuple, cwd: Path, processes: int = 1, tool: str = "train.py"):
        self.log = cwd / f"log{len(list(cwd.glob('log*')))}"
        self.processes, port = [], str(free_port())
        for rank in range(processes):
            env = dict(os.environ, OMP_NUM_THREADS="1")
            argv = command(tool, *arguments)
            if processes > 1:
                env |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
                env |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                argv += ["--launcher", "pytorch"]
            with self.log.open("a") as log:
                self.processes.append(
                    subprocess.Popen(
                        argv, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True
                    )
                )

    def reach(self, pattern: str) -> None:
        while not re.search(pattern, self.log.read_text()):
            assert all(p.poll() is None for p in self.processes), self.log.read_text()[-3000:]
            time.sleep(0.02)

    def statuses(self) -> list[int]:
        return [process.wait(timeout=300) for process in self.processes]

    def workers(self) -> list[int]:
        pid = self.processes[0].pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]


def last_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "continue with --resume" in line]


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
        first = run_tool(
            "train.py", *arguments, "--cfg-options", "train_cfg.max_iters=2", cwd=tmp_path
        )
        assert first.status == 0, first.err[-2000:]
        size = (disk / "run" / "iter_2.pth").stat().st_size
        remount = ["mount", "-o", f"remount,size={int(size * 1.6)}", str(disk)]
        subprocess.run(remount, check=True)
        full = run_tool("train.py", *arguments, "--resume", cwd=tmp_path)
        ended(full, "iter_4.pth: cannot be written .No space left", "earlier ones are kept")
        assert [p.name for p in (disk / "run").glob("*.pth*")] == ["iter_2.pth"]
        assert not list((disk / "run").glob(".*"))
        read_checkpoint(disk / "run" / "iter_2.pth")
        subprocess.run(["mount", "-o", "remount,size=99m", str(disk)], check=True)
        again = run_tool("train.py", *arguments, "--resume", cwd=tmp_path)
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
    (line,) = last_lines(text)
    pattern = rf"stopped by {sent.name} at iteration (\d+), saved .*interrupted.pth"
    step = int(re.search(pattern, line)[1])
    saved = read_checkpoint(tmp_path / "run" / "interrupted.pth")
    assert saved["meta"]["iter"] == step and len(saved["training_state"]["processes"]) == processes
    if processes == 1 and sent is signal.SIGTERM:
        options[0] = f"train_cfg.max_iters={step + 1}"
        arguments = (config, "--data", shapes, "--work-dir", "run", "--resume", "--cfg-options")
        again = run_tool("train.py", *arguments, *options, cwd=tmp_path)
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
    text = run.log.read_text()
    assert "Traceback" not in text, text[-3000:]
    assert "process 0 lost another process of the run" in last_lines(text)[-1]
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


def test_connections_of_a_data_worker_that_close_before_its_death():
    images = DyingSlowly()
    with pytest.raises(RuntimeError) as caught, worker_deaths_told():
        batches = iter(DataLoader(images, num_workers=1))
        assert images.shut.wait(10)
        next(batches)
    assert "was killed (SIGKILL)" in str(what_was_lost(caught.value))


def test_death_of_a_data_worker_interrupts_nothing_but_waiting_for_data():
    batches = iter(DataLoader(torch.zeros(1000, 8), num_workers=2))
    time.sleep(0.2)  # it has read ahead
    steps = 0
    with pytest.raises(RuntimeError) as caught, worker_deaths_told():
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        while steps < 5:
            time.sleep(0.1)
            steps += 1
        for _ in batches:
            pass
    assert steps == 5
    assert "was killed (SIGKILL)" in str(what_was_lost(caught.value))


def test_data_worker_that_dies_with_a_lock_holds_up_nobody():
    batches = iter(DataLoader(torch.zeros(1000, 8), num_workers=1))
    time.sleep(0.2)
    lock = batches._workers_done_event._cond
    with lock, pytest.raises(RuntimeError) as caught, worker_deaths_told():
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        time.sleep(0.3)
        for _ in batches:
            pass
    assert "was killed (SIGKILL)" in str(what_was_lost(caught.value))


@pytest.mark.slow
def test_killed_data_worker_is_named_as_such(shapes, tmp_path):
    config = write_config(tmp_path, "segmentation", "train_cfg['max_iters'] = 500")
    options = ("--cfg-options", "train_dataloader.num_workers=2")
    run = Started((config, "--data", shapes, "--work-dir", "run", *options), tmp_path)
    run.reach(r"Iter\(train\) +\[ *2/")
    os.kill(run.workers()[0], signal.SIGKILL)
    assert run.statuses() == [2]
    text = run.log.read_text()
    assert "Traceback" not in text, text[-3000:]
    line = last_lines(text)[-1]
    assert re.search(r"data worker \d+ was killed \(SIGKILL\), as the .*out-of-memory killer", line)
    assert "num_workers" in line


@pytest.mark.slow
def test_killed_data_worker_of_an_evaluation_is_named_too(shapes, tmp_path):
    config = write_config(tmp_path, "segmentation", "train_cfg['max_iters'] = 2")
    arguments = (config, "--data", shapes, "--work-dir", "run")
    trained = run_tool("train.py", *arguments, cwd=tmp_path)
    assert trained.status == 0, trained.err[-2000:]
    options = ("--cfg-options", "test_dataloader.num_workers=2")
    arguments = (config, tmp_path / "run" / "iter_2.pth", *arguments[1:], *options)
    run = Started(arguments, tmp_path, tool="test.py")
    while len(run.workers()) < 2:
        assert run.processes[0].poll() is None, run.log.read_text()[-3000:]
    os.kill(run.workers()[0], signal.SIGKILL)
    assert run.statuses() == [2]
    text = run.log.read_text()
    assert "Traceback" not in text, text[-3000:]
    assert re.search(r"data worker \d+ was killed \(SIGKILL\)", last_lines(text)[-1])


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
    assert "unreadable images that others stood in for: 2, listed in" in run.log.read_text()
    if processes == 1:
        stopped = run_tool("train.py", *arguments[:4], "again", *workers, cwd=tmp_path)
        ended(stopped, f"{images[1].name}|{labels.name}", "empty, cut off or not an image")


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
    assert "Traceback" not in text, text[-3000:]
    good = 4 // processes  # steps on the first half of the pictures
    line = last_lines(text)[-1]
    for words in (
        f"stopped at iteration {good + 2}: 2 steps in a row not finite",
        names[2 * processes * (good + 1)],
        "decode.loss_ce nan",
        "first output not finite: data_preprocessor",
        "input is not finite either",
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
    empty, crowds = set(ids[:4]), set(ids[4:])
    content["annotations"] = [
        {**row, "iscrowd": 1} for row in content["annotations"] if row["image_id"] in crowds
    ]
    assert empty and content["annotations"]
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
    done = run_tool("train.py", config, "--data", shapes, "--work-dir", "run", cwd=tmp_path)
    ended(done, r"iter_4.pth: not saved, .* is not finite")
    assert [p.name for p in (tmp_path / "run").glob("*.pth")] == ["iter_2.pth"]


def test_what_is_lost_is_told_from_other_errors():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "data worker 7 was killed (SIGKILL)" in str(what_was_lost(killed))
    several = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    assert "data worker 7, 8 was killed (SIGKILL)" in str(what_was_lost(several))
    several.__context__ = RuntimeError("DataLoader worker (pid 8) is killed by signal: Hangup. ")
    assert "data worker 8 was killed (Hangup)" in str(what_was_lost(several))
    shared = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"
    )
    assert "/dev/shm" in str(what_was_lost(shared))
    assert what_was_lost(RuntimeError("shape mismatch")) is None
    assert what_was_lost(RuntimeError("Connection closed by peer")) is None  # one process alone


def test_exit_statuses():
    from backbones.errors import StoppedForNow, reported_in_one_line

    for error, status in ((StoppedForNow("x"), 75), (KeyboardInterrupt("x"), 130)):
        with pytest.raises(SystemExit) as end, reported_in_one_line("go on"):
            raise error
        assert end.value.code == status
