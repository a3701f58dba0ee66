"""Train, resume, predict and export with the tools on the emulated GPU."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.emulated_gpu.preloading import INSIDE
from support.forked import Forked
from support.running import REPOSITORY, Outcome, command
from support.small_runs import COMMON, write_config

pytestmark = pytest.mark.slow
SCRIPT = REPOSITORY / "tests" / "support" / "emulated_gpu" / "run_tool.py"
# Of these runs alone: float32, in which a GPU's losses are a CPU's, and a step's every loss.
FLOAT32 = 'optim_wrapper = dict(type="OptimWrapper")\ndel _base_.optim_wrapper.dtype\n'
THREE_STEPS = {
    "segmentation": """
train_cfg = dict(max_iters=3, val_interval=3)
model["backbone"]["drop_path_rate"] = 0.5
""",
    "detection": """
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader["dataset"] = dict(indices=6)
val_dataloader["dataset"] = dict(indices=1)
""",
    "classification": COMMON.format(
        base=str(REPOSITORY / "configs" / "classification" / "convnext_atto_demo.py")
    )
    + """
model = dict(
    mixup_alpha=0.8,
    network=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])),
)
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(batch_size=20, num_workers=0, persistent_workers=False)
custom_hooks = [dict(type="InterruptHook"), dict(type="WeightAverageHook", decay=0.5)]
""",
}


def config_of(folder: Path, task: str, *lines: str) -> Path:
    if task == "classification":
        path = folder / "classification.py"
        path.write_text("\n".join([THREE_STEPS[task], *lines]))
        return path
    return write_config(folder, task, THREE_STEPS[task], *lines)


def run(device: str, tool: str, *arguments: object, cwd: Path) -> Outcome:
    assert INSIDE
    out, err = (cwd / f"{device}-{tool}.{name}" for name in ("out", "err"))
    argv = [str(SCRIPT), device, *command(tool, *arguments)[1:]]
    status = Forked(argv, cwd, out, err, dict(os.environ)).wait(timeout=600)
    outcome = Outcome(status, out.read_text(), err.read_text())
    assert outcome.status == 0, outcome.err[-3000:] + outcome.out[-1000:]
    return outcome


def scalars(run_dir: Path) -> tuple[list[dict], list[dict]]:
    """Return what a run logged of its steps and of its evaluations."""
    (path,) = run_dir.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if "loss" in r], [r for r in rows if "loss" not in r]


@pytest.mark.parametrize("task", THREE_STEPS)
def test_three_steps_and_an_evaluation(task, shapes, tmp_path):
    config = config_of(tmp_path, task, FLOAT32)
    found = {}
    for device in ("cuda", "cpu"):
        arguments = (config, "--data", shapes, "--work-dir", tmp_path / device)
        outcome = run(device, "train.py", *arguments, cwd=tmp_path)
        assert ("no-op GPU" in outcome.out) == (device == "cuda")
        found[device] = scalars(tmp_path / device)
    (steps, scores), (wanted_steps, wanted_scores) = found["cuda"], found["cpu"]
    assert len(steps) == 3 == len(wanted_steps)
    for step, wanted in zip(steps, wanted_steps, strict=True):
        losses = {name: value for name, value in wanted.items() if "loss" in name}
        assert {name: step[name] for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-4)
    (score,), (wanted,) = scores, wanted_scores
    names = [n for n in wanted if n not in ("data_time", "time", "step", "epoch", "iter")]
    assert names and {n: score[n] for n in names} == pytest.approx(
        {n: wanted[n] for n in names}, abs=0.02 * max(1.0, *(wanted[n] for n in names))
    )


def test_resume(shapes, tmp_path):
    """Check that a run in bfloat16 continues bit for bit."""
    from backbones.weights import read_checkpoint

    lines = "train_cfg = dict(max_iters=4, val_interval=4)"
    config = config_of(tmp_path, "segmentation", lines)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("cuda", "train.py", config, "--data", shapes, "--work-dir", whole, cwd=tmp_path)
    resumed.mkdir()
    shutil.copy(whole / "iter_2.pth", resumed)
    (resumed / "last_checkpoint").write_text(str(resumed / "iter_2.pth"))
    arguments = (config, "--data", shapes, "--work-dir", resumed, "--resume")
    run("cuda", "train.py", *arguments, cwd=tmp_path)
    wanted, found = (read_checkpoint(folder / "iter_4.pth") for folder in (whole, resumed))
    before = read_checkpoint(whole / "iter_2.pth")["state_dict"]
    assert any((before[name] != weight).any() for name, weight in wanted["state_dict"].items())
    for name, weight in wanted["state_dict"].items():
        assert (found["state_dict"][name] == weight).all(), name
    for number, state in wanted["optimizer"]["state"].items():
        assert all((found["optimizer"]["state"][number][k] == v).all() for k, v in state.items())


def test_predict_by_tiles(shapes, demo_models, tmp_path):
    config, checkpoint = demo_models["detection"]
    image = min((shapes / "val2017").glob("*.jpg"))
    found = {}
    for device in ("cuda", "cpu"):
        arguments = (config, checkpoint, image, "--tile", 64, "--overlap", 16)
        run(device, "predict.py", *arguments, "--out", tmp_path / device, cwd=tmp_path)
        found[device] = json.loads((tmp_path / device / "predictions.json").read_text())
    ours, wanted = (
        [(row["category_id"], *row["bbox"]) for row in rows.get("annotations", ())]
        if isinstance(rows, dict)
        else [(row["category_id"], *row["bbox"]) for row in rows]
        for rows in (found["cuda"], found["cpu"])
    )
    # Of a model that is not trained, scores are close, and their order is a matter of rounding.
    alike = [box for box in wanted if any(other == pytest.approx(box, abs=0.1) for other in ours)]
    assert len(wanted) > 3 and len(ours) == len(wanted) and len(alike) >= 0.9 * len(wanted)


def test_export(shapes, demo_models, tmp_path):
    """Export on a machine that has a GPU, which the tool does not use; it compares the file."""
    config, checkpoint = demo_models["segmentation"]
    out = tmp_path / "model.onnx"
    arguments = (config, checkpoint, "--data", shapes, "--to", "onnx", "--images", 1)
    run("visible", "export.py", *arguments, "--part", "backbone", "--out", out, cwd=tmp_path)
    assert out.stat().st_size > 1e6
