#!/usr/bin/env python
"""Kill runs with SIGKILL at random times, resume them, and compare them bit for bit.

python -m benchmarks.kills --runs 100
python -m benchmarks.kills --runs 10 --out work_dirs/campaign --seed 1
python -m benchmarks.kills --runs 100 --resume    # the runs that an interrupted campaign lacks

Every run is a small one of a demo config, on CPU, alternately a detector by epochs and a segmentor
by iterations, each by one process and by two. A third of the kills come at any moment, a third
while a checkpoint is being written, a third during validation; a run may be killed several times.
A run counts as identical if its last checkpoint (weights, optimizer, EMA, schedules, log), its best
checkpoint and every line of its log of scores and losses are those of a run that was never killed.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import parser_for

from .run_differences import differences

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = {
    task: REPOSITORY / "configs" / task / f"{name}_convnext_atto_demo.py"
    for task, name in (("detection", "cascade"), ("segmentation", "upernet"))
}
COMMON = """
randomness = dict(seed=7)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="EMAHook", momentum=0.1),
]
dims = [16, 24, 32, 40]
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=dims), drop_path_rate=0.3
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=dict(max_norm=1.0))
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""
# Checkpoints within epochs, the last and the best one kept, augmentation, stochastic depth.
SMALL = {
    "detection": """
train_cfg = dict(max_epochs=3, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(step_interval=3, max_keep_ckpts=1, save_best="coco/bbox_mAP"),
)
model["neck"] = dict(in_channels=dims)
model["train_cfg"] = dict(rpn_proposal=dict(nms_pre=100, max_per_img=50))
heads = [{**head, "fc_out_channels": 32} for head in _base_.model.roi_head.bbox_head]
model["roi_head"] = dict(bbox_head=heads, mask_head=dict(conv_out_channels=8))
del heads
model["test_cfg"] = dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0))
""",
    "segmentation": """
train_cfg = dict(max_iters=18, val_interval=6)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=5),
    dict(type="PolyLR", power=1.0, begin=5, end=18, eta_min=0.0, by_epoch=False),
]
crop = dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75)
resize = dict(type="RandomResize", scale=(64, 64), ratio_range=(1.0, 1.5), keep_ratio=True)
steps = _base_.train_dataloader.dataset.pipeline
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(pipeline=[*steps[:2], resize, crop, *steps[4:]]),
)
del crop, resize, steps
model["data_preprocessor"] = dict(size=(64, 64))
model["decode_head"] = dict(in_channels=dims, channels=16)
model["auxiliary_head"] = dict(in_channels=32, channels=16)
model["test_cfg"] = dict(crop_size=(64, 64), stride=(42, 42))
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=4, max_keep_ckpts=1, save_best="mIoU"),
)
""",
}
MOMENTS = ("any", "saving", "validation")


class Run:
    """Run one training in one or more processes that can be killed and resumed.

    Args:
        config: its config file.
        data: folder of the demo set.
        folder: work dir and logs.
        processes: 1, or more with gloo.
    """

    def __init__(self, config: Path, data: Path, folder: Path, processes: int):
        self.folder = folder
        self.processes = processes
        self.argv = [sys.executable, str(REPOSITORY / "tools" / "train.py"), str(config)]
        self.argv += ["--data", str(data), "--work-dir", str(folder)]
        if processes > 1:
            self.argv += ["--launcher", "pytorch"]
        self._running: list[subprocess.Popen] = []
        self.starts = 0

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{self.starts}.log")

    def start(self, *options: str) -> None:
        """Start all processes, each with a process group of its own for its DataLoader workers."""
        self.starts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.processes):
            environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
            environment |= dict(CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(REPOSITORY))
            if self.processes > 1:
                environment |= dict(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.processes),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
            with self.log.open("a") as log:
                self._running.append(
                    subprocess.Popen(
                        [*self.argv, *options],
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )  # fmt: skip
                )

    def running(self) -> bool:
        return any(process.poll() is None for process in self._running)

    def wait(self) -> int:
        """Return the worst exit status of the processes."""
        statuses = [process.wait(timeout=3600) for process in self._running]
        self._running = []
        return max(statuses, key=abs)

    def kill(self) -> None:
        """Send SIGKILL to every process and DataLoader worker."""
        for process in self._running:
            with suppress(ProcessLookupError):  # one of two may have ended just now
                os.killpg(process.pid, signal.SIGKILL)
        self.wait()

    def reach(self, moment: str, draw: random.Random, seconds: float) -> bool:
        """Wait for the time to kill the run; return whether it came before the run's end."""
        if moment == "any":
            end = time.monotonic() + draw.uniform(0.3, 1.0) * seconds
            while self.running() and time.monotonic() < end:
                time.sleep(0.01)
            return self.running()
        count, seen, before = draw.randint(1, 6), 0, False
        while self.running():
            if moment == "saving":
                now = any(self.folder.glob(".*.pth.part"))
                seen += now and not before
                before = now
            else:
                seen = self.log.read_text().count("(val)")
                time.sleep(0.02)
            if seen >= count:
                time.sleep(draw.uniform(0, 0.05))
                return self.running()
            time.sleep(0.001)
        return False


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kill times")
    parser.add_argument("--jobs", type=int, default=1, help="number of concurrent runs")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/campaign"))
    parser.add_argument(
        "--resume", action="store_true", help="continue with the runs in the folder's kills.json"
    )
    args = parser.parse_args()
    for name in ("runs", "jobs"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")

    out = args.out.resolve()
    kinds = [(list(SMALL)[i % 2], 1 + i // 2 % 2) for i in range(args.runs)]
    if args.resume:
        references, rows = _begun(out, args.seed, kinds)
    else:
        references, rows = _begin(out, kinds), []
    done = {row["number"] for row in rows}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = []
        for i, kind in enumerate(kinds):
            if i not in done:
                draw = random.Random(args.seed + i)
                runs.append(pool.submit(_killed_run, out, i, *kind, references[kind], draw))
        for run in as_completed(runs):
            row = run.result()
            rows.append(row)
            result = "identical" if not row["different"] else f"DIFFERENT: {row['different'][:3]}"
            what = f"run {row['number']}, {row['task']} by {row['processes']}"
            print(f"{len(rows):4} {what}: {row['kills']}: {result}", flush=True)
            summary = dict(_summary(rows), seed=args.seed, seconds=list(references.items()))
            write_atomically(out / "kills.json", json.dumps(summary, indent=2))

    table = Table("config", "processes", "runs", "kills", "identical", title="killed and resumed")
    for entry in _summary(rows)["groups"]:
        table.add_row(*(str(entry[key]) for key in entry))
    Console().print(table)
    print(f"{out / 'kills.json'}")
    if any(row["different"] for row in rows):
        sys.exit(1)


def _begin(out: Path, kinds: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """Make data and configs, run each kind without a kill; return the seconds that it takes."""
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out}: not empty; give another folder with --out, --resume or delete it",
            code="bad-argument",
            where=out,
        )
    out.mkdir(parents=True, exist_ok=True)
    prepare = [sys.executable, str(REPOSITORY / "tools" / "prepare_data.py"), "demo"]
    prepare += ["--root", str(out), "--train", "16", "--val", "4", "--size", "64"]
    subprocess.run(prepare, check=True)
    for task, small in SMALL.items():
        text = f"_base_ = {str(CONFIGS[task])!r}\n{COMMON}{small}del dims\n"
        write_atomically(out / f"{task}.py", text)
    seconds = {}
    for task, processes in dict.fromkeys(kinds):
        run = Run(out / f"{task}.py", out / "demo", _whole(out, task, processes), processes)
        begin = time.monotonic()
        run.start()
        if run.wait():
            raise InputError(f"the reference run failed: see {run.log}")
        seconds[task, processes] = time.monotonic() - begin
    return seconds


def _begun(
    out: Path, seed: int, kinds: list[tuple[str, int]]
) -> tuple[dict[tuple[str, int], float], list[dict]]:
    """Return what `_begin` gave an interrupted campaign, and its runs; delete unfinished ones."""
    if not (out / "kills.json").is_file():
        raise InputError(
            f"--resume: {out / 'kills.json'} does not exist; run without --resume",
            code="not-found",
            where=out / "kills.json",
        )
    summary = json.loads((out / "kills.json").read_text())
    if summary["seed"] != seed:
        raise InputError(f"--resume: {out} was begun with --seed {summary['seed']}, not {seed}")
    seconds = {tuple(kind): length for kind, length in summary["seconds"]}
    if not seconds.keys() >= set(kinds):
        raise InputError(f"--resume: {out} was begun with fewer kinds of runs; begin another")
    done = {f"run_{row['number']:03}" for row in summary["rows"]}
    for path in out.glob("run_*"):
        if path.name.partition(".")[0] not in done:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return seconds, summary["rows"]


def _whole(out: Path, task: str, processes: int) -> Path:
    return out / f"{task}_{processes}_whole"


def _killed_run(
    out: Path,
    number: int,
    task: str,
    processes: int,
    seconds: float,
    draw: random.Random,
) -> dict:
    run = Run(out / f"{task}.py", out / "demo", out / f"run_{number:03}", processes)
    kills = []
    wanted = draw.choice((1, 1, 1, 2, 3))
    while len(kills) < wanted:
        run.start("--resume")
        moment = MOMENTS[(number // 4 + len(kills)) % 3]
        if not run.reach(moment, draw, seconds):
            break  # it ended before the moment came
        run.kill()
        kills.append(moment)
    status = 0
    if len(kills) == wanted:
        run.start("--resume")
    status = run.wait()
    whole = _whole(out, task, processes)
    different = [f"exit status {status}"] if status else differences(whole, run.folder)
    if not different:
        for path in run.folder.glob("*.pth"):
            path.unlink()
    return dict(number=number, task=task, processes=processes, kills=kills, different=different)


def _summary(rows: list[dict]) -> dict:
    groups = []
    for task, processes in sorted({(row["task"], row["processes"]) for row in rows}):
        mine = [row for row in rows if (row["task"], row["processes"]) == (task, processes)]
        groups.append(
            dict(
                task=task,
                processes=processes,
                runs=len(mine),
                kills=sum(len(row["kills"]) for row in mine),
                identical=sum(not row["different"] for row in mine),
            )
        )
    moments = Counter(moment for row in rows for moment in row["kills"])
    identical = sum(not row["different"] for row in rows)
    return dict(runs=len(rows), identical=identical, moments=moments, groups=groups, rows=rows)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
