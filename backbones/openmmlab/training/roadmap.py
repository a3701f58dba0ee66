"""Train the steps of the roadmap one after the other with the tools."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.roadmap import STEPS
from backbones.weights import read_checkpoint, state_dict, write_checkpoint

TOOLS = Path(__file__).parents[3] / "tools"
CONFIGS = TOOLS.parent / "configs" / "classification"


def train_steps(
    steps: list[str],
    data: Path,
    *,
    regime: str,
    config: Path | None = None,
    work_dir: Path = Path("work_dirs/roadmap"),
    seed: int = 0,
    processes: int = 1,
    options: Sequence[str] = (),
) -> dict[str, float]:
    """Train and evaluate the steps one after the other; finished steps are kept.

    A step's run is in `<work dir>/<regime>/<step>`, its weights for a detector or segmentor in
    `<step>.pth` beside that folder.

    Args:
        steps: names in `STEPS`; `resnet`, whose recipe differs, is left out with a `config`.
        data: folder of the data set.
        regime: `resnet50` or `resnet200`.
        config: the recipe; by default the regime's on ImageNet.
        work_dir: folder of all runs.
        seed: random seed of every run.
        processes: number of ranks of each training, by torchrun.
        options: `KEY=VALUE` changes of the config.

    Returns:
        Top-1 in % of each step's last checkpoint.

    Raises:
        InputError: the work dir holds runs of another config, data set, seed or options; a step
            ended in an error, which its own tool has printed.
    """
    if config and "resnet" in steps:
        steps = [step for step in steps if step != "resnet"]
        print("resnet: skipped, its recipe differs; the network of training_recipe is the same")
    config = config or CONFIGS / f"roadmap_{regime}.py"
    if not config.is_file():
        raise InputError(f"{config}: no such config file", code="not-found", where=config)
    folder = work_dir / regime
    setting = dict(config=str(config), data=str(data), seed=seed, options=list(options))
    _keep_setting(folder / "roadmap.json", setting)
    measured = {}
    for i, step in enumerate(steps):
        run = folder / step
        metrics = run / "metrics.json"
        if not metrics.is_file():
            print(f"\nroadmap {i + 1} of {len(steps)}: {step}, {STEPS[step].change}", flush=True)
            recipe = CONFIGS / f"roadmap_{regime}_torchvision.py" if step == "resnet" else config
            common = ["--work-dir", run, "--data", data]
            changes = [f"model.network.regime={regime}", f"model.network.step={step}", *options]
            seeded = [*changes, f"randomness.seed={seed}"]
            train = [recipe, *common, "--resume", "--cfg-options", *seeded]
            _run("train.py", train, processes, step)
            checkpoint = Path((run / "last_checkpoint").read_text().strip())
            _write_weights(checkpoint, folder / f"{step}.pth")
            _run("test.py", [recipe, checkpoint, *common, "--cfg-options", *changes], 1, step)
        measured[step] = json.loads(metrics.read_text())["top1"]
        print(f"roadmap {i + 1} of {len(steps)}: {step} {measured[step]:.2f}", flush=True)
    return measured


def _keep_setting(path: Path, setting: dict) -> None:
    """Write the settings that all runs of a folder share, or compare them with earlier ones."""
    if path.is_file():
        before = json.loads(path.read_text())
        for key, value in setting.items():
            if before.get(key) != value:
                raise InputError(
                    f"{path.parent}: holds runs with {key} {before.get(key)}, not {value}; "
                    "give another --work-dir or remove it",
                    code="bad-argument",
                    where=path.parent,
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(setting, indent=1))


def _run(tool: str, arguments: list, processes: int, step: str) -> None:
    """Run a tool to its end. The tool handles Ctrl-C, after which this process ends."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", processes]
    command = [*(launcher if processes > 1 else []), TOOLS / tool, *arguments]
    if processes > 1:
        command += ["--launcher", "pytorch"]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=sys.stderr)
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted or status == 130:
        raise KeyboardInterrupt(f"stopped in step {step}")
    if status:
        raise InputError(
            f"step {step}: tools/{tool} ended with status {status}, see above",
            code="lost-process",
            where=step,
        )


def _write_weights(checkpoint: Path, path: Path) -> None:
    """Write the network of a training checkpoint alone, as detectors and segmentors load it."""
    tensors = state_dict(read_checkpoint(checkpoint), checkpoint)
    network = {re.sub(r"^network\.", "", name): tensor for name, tensor in tensors.items()}
    write_checkpoint(network, path, wrapper="state_dict", safetensors=False)
