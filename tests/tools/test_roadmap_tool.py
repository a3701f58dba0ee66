"""tools/roadmap.py: its table, its figure, and what it trains and measures."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from support.forked import run_forked
from support.running import REPOSITORY, assert_error, command, run_here
from torchvision.datasets import ImageFolder

from backbones import ModernizedResNetClassifier
from backbones.openmmlab.classification.transforms import ResizeForTest
from backbones.roadmap import STEPS

DEMO = REPOSITORY / "configs" / "classification" / "roadmap_demo.py"
NARROW = dict(depths=(1, 1, 1, 1), width=8)
OPTIONS = [
    "model.network.design.depths=[1,1,1,1]",
    "model.network.design.width=8",
    "train_dataloader.batch_size=16",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
]


@pytest.mark.parametrize("regime", ["resnet50", "resnet200"])
def test_json_is_the_table(regime):
    done = run_here("roadmap.py", "--json", "--regime", regime)
    assert done.status == 0, done.err
    rows = json.loads(done.out)
    assert [row["step"] for row in rows] == list(STEPS)
    for row in rows:
        published = getattr(STEPS[row["step"]], regime)
        assert (row["published_top1"], row["published_gflops"]) == published[:2]
        assert row["params"] > 15e6 and row["measured_top1"] is None
        if not row["note"]:
            assert abs(row["macs"] / 1e9 - published.gflops) <= 0.0055
    noted = [row["step"] for row in rows if row["note"]]
    assert noted == (["layer_norm", "separate_downsampling"] if regime == "resnet50" else [])


def test_table_names_step_change_and_numbers():
    done = run_here("roadmap.py", "--steps", "patchify", "layer_norm")
    assert done.status == 0
    title, header, *rows = done.out.strip().splitlines()
    assert "Table 10" in title and "measured" not in header
    assert [row.split()[0] for row in rows] == ["patchify", "layer_norm"]
    for part in ("28.62 M", "4.42 G", "79.51 ±0.18"):
        assert part in rows[0]


def test_figure_is_drawn(tmp_path):
    done = run_here("roadmap.py", "--steps", "gelu", "--plot", tmp_path / "figure.png")
    assert done.status == 0, done.err
    picture = Image.open(tmp_path / "figure.png").convert("RGB")
    assert picture.width > 1000 and picture.height > 800
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {(47, 111, 176), (185, 191, 198)} <= colours  # the bars of both regimes


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["--plot", "figure.jpeg2"], "bad-argument", "figure.jpeg2"),
        (["--plot", "nowhere/figure.png"], "write-failed", "nowhere/figure.png"),
        (["--train", "data", "--config", "nowhere.py"], "not-found", "nowhere.py"),
    ],
)
def test_mistakes_are_named(arguments, code, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_error(run_here("roadmap.py", *arguments), code, name)


def test_runs_of_another_setting_are_not_mixed(tmp_path):
    """A row is read from what was measured; nothing else is trained or read."""
    folder = tmp_path / "resnet50"
    (folder / "gelu").mkdir(parents=True)
    (folder / "gelu" / "metrics.json").write_text(json.dumps({"top1": 12.5}))
    arguments = ("--train", "data", "--config", DEMO, "--work-dir", tmp_path, "--steps", "gelu")
    done = run_here("roadmap.py", *arguments, "--json")
    assert done.status == 0, done.err
    (row,) = json.loads(done.out)
    assert row["measured_top1"] == 12.5
    done = run_here("roadmap.py", *arguments, "--seed", 1)
    assert_error(done, "bad-argument", tmp_path / "resnet50", "seed 0")
    done = run_here("roadmap.py", *arguments, "--cfg-options", "train_cfg.max_epochs=1")
    assert_error(done, "bad-argument", tmp_path / "resnet50", "options")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """32 and 12 pictures of each shape."""
    root = tmp_path_factory.mktemp("data")
    arguments = ("--root", root, "--train", 32, "--val", 12, "--size", 64)
    assert run_here("prepare_data.py", "demo", *arguments).status == 0
    return root / "demo"


def training(data: Path, *arguments: object, epochs: int) -> list[str]:
    options = [*OPTIONS, f"train_cfg.max_epochs={epochs}", f"train_cfg.val_interval={epochs}"]
    common = ("--train", data, "--config", DEMO, "--work-dir", "runs", *arguments)
    return [*map(str, common), "--cfg-options", *options]


def top1(weights: Path, step: str, data: Path) -> float:
    """Of a file of weights, by a loop that shares nothing with the runner."""
    tensors = torch.load(weights, weights_only=True)["state_dict"]
    network = ModernizedResNetClassifier(step, design=NARROW, num_classes=4).eval()
    network.load_state_dict(tensors, strict=True)
    resize = ResizeForTest(input_size=64).resize
    pictures = ImageFolder(str(data / "classes" / "val"))
    order = [pictures.classes.index(n) for n in ("circle", "square", "triangle", "star")]
    hits = 0
    with torch.no_grad():
        for picture, label in pictures:
            logits = network(resize(picture)[None])[0]
            hits += order[int(logits.argmax())] == label
    return 100 * hits / len(pictures)


@pytest.mark.slow
def test_two_steps_are_trained_and_measured(data, tmp_path):
    steps = ("patchify", "kernel_9")
    arguments = training(data, "--steps", *steps, "--json", epochs=4)
    done = run_forked("roadmap.py", *arguments, cwd=tmp_path)
    assert done.status == 0, done.err[-3000:]
    rows = {row["step"]: row["measured_top1"] for row in json.loads(done.out)}
    folder = tmp_path / "runs" / "resnet50"
    for step in steps:
        assert rows[step] == pytest.approx(top1(folder / f"{step}.pth", step, data))
        resolved = Config.fromfile(folder / step / "roadmap_demo.py", import_custom_modules=False)
        assert resolved.model.network.step == step
        assert resolved.randomness.seed == 0
    weights = torch.load(folder / "kernel_9.pth", weights_only=True)["state_dict"]
    assert weights["stages.0.0.conv1.weight"].shape[-1] == 9
    # Done is done: the table again, and nothing trained.
    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again = run_forked("roadmap.py", *arguments, cwd=tmp_path)
    assert json.loads(again.out) == json.loads(done.out)
    assert written == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_step_it_was_in(data, tmp_path):
    arguments = training(data, "--steps", "patchify", "depthwise", "--json", epochs=30)
    step = tmp_path / "runs" / "resnet50" / "patchify"
    process = subprocess.Popen(
        command("roadmap.py", *arguments),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 400
    while not (step / "last_checkpoint").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = Path((step / "last_checkpoint").read_text().strip()).name
    assert not (step / "metrics.json").exists(), "it ended before it was killed"
    assert not (step.parent / "depthwise").exists()

    # The rest of it is long enough to kill and short enough to finish.
    done = run_forked("roadmap.py", *arguments, cwd=tmp_path)
    assert done.status == 0, done.err[-3000:]
    assert f"resumed epoch: {int(reached[6:-4])}" in done.err
    rows = {row["step"]: row["measured_top1"] for row in json.loads(done.out)}
    assert all(value is not None for value in rows.values())
    for name in rows:
        assert rows[name] == pytest.approx(top1(step.parent / f"{name}.pth", name, data))


@pytest.mark.slow
def test_weights_go_on_into_a_detector(data, tmp_path):
    """By the address that the config names, from the folder that the training wrote into."""
    weights = tmp_path / "work_dirs/roadmap/resnet50"
    weights.mkdir(parents=True)
    network = ModernizedResNetClassifier("wider", num_classes=4)
    torch.save({"state_dict": network.state_dict()}, weights / "wider.pth")
    from mmengine.registry import MODELS, DefaultScope

    from backbones.openmmlab.config import load_config

    path = REPOSITORY / "configs/detection/mask_rcnn_roadmap.py"
    config = load_config(path, {"model.backbone.step": "wider"})
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            backbone = MODELS.build(config.model.backbone)
        backbone.init_weights()
    finally:
        os.chdir(here)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    shutil.rmtree(weights)
