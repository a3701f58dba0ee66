"""Runs on images of other bands: from the data to exported files, hostile rasters, robustness."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from mmengine.config import Config
from PIL import Image
from support.drawn_bands import NAMES, TOLD_BY, draw_bands, write_tiff
from support.forked import run_forked
from support.running import REPOSITORY, assert_error, run_here
from support.small_runs import write_config

from backbones.errors import InputError
from backbones.openmmlab.evaluation.corruption import (
    COLOUR_ONLY,
    CORRUPTIONS,
    choose_corruptions,
    corrupt,
    corrupt_bands,
)

LOAD = dict(type="LoadImage", bands=("1",), band_names=("1",), band_dtype="uint16")
CLASSIFICATION = REPOSITORY / "configs" / "classification" / "convnext_atto_demo.py"
METRIC = {"segmentation": "mIoU", "detection": "coco/bbox_mAP_50"}
# What the drawn sets are trained to, and what a run on the RGB bands stays below.
REACHED = {"segmentation": (80.0, 60.0), "detection": (0.6, 0.1)}
LEARNING = {
    "segmentation": (
        "train_cfg = dict(max_iters=60, val_interval=60)",
        "val_dataloader['dataset'] = dict(indices=None)",
        "optim_wrapper = dict(optimizer=dict(lr=1e-3))",
    ),
    "detection": (
        "train_cfg = dict(max_epochs=16, val_interval=16)",
        "default_hooks['checkpoint'] = dict(interval=16)",
        "optim_wrapper = dict(optimizer=dict(lr=3e-3))",
        "warmup = dict(_base_.param_scheduler[0], end=10)",
        "param_scheduler = [warmup, dict(_base_.param_scheduler[1], end=16, T_max=16)]",
        "steps = _base_.val_dataloader.dataset.pipeline",
        "steps = [steps[0], dict(steps[1], scale=(64, 64)), *steps[2:]]",
        "val_dataloader['dataset'] = dict(pipeline=steps)",
        "test_dataloader = dict(dataset=dict(pipeline=steps))",
        "load, views = _base_.tta.flip.pipeline",
        "views = dict(views, transforms=[[steps[1]], *views['transforms'][1:]])",
        "tta = dict(flip=dict(pipeline=[load, views]))",
        "del warmup, steps, load, views",
    ),
}


def draw(root: Path, task: str, bands: int, dtype: str, images: int = 24) -> Path:
    layout = dict(segmentation="labels", detection="coco", classification="folders")[task]
    draw_bands(root, bands, dtype, TOLD_BY[bands], images, layout=layout)
    (root / "bands.json").write_text(json.dumps(dict(names=NAMES[bands])))
    return root


def done(tool: str, *arguments: object, cwd: Path) -> str:
    outcome = run_forked(tool, *arguments, cwd=cwd)
    assert outcome.status == 0, outcome.err[-3000:]
    return outcome.out


def trained(folder: Path, task: str, root: Path, *lines: str) -> tuple[Path, Path, dict]:
    """The resolved config, the checkpoint and the report of a training."""
    folder.mkdir()
    config = write_config(folder, task, *LEARNING[task], *lines)
    run = folder / "run"
    done("train.py", config, "--data", root, "--work-dir", run, cwd=folder)
    checkpoint = Path((run / "last_checkpoint").read_text())
    return run / config.name, checkpoint, json.loads((run / "report.json").read_text())


def labels_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "labels" / f"{name}.png"))


def detections(folder: Path) -> np.ndarray:
    """Box and score of what is found best in each image."""
    content = json.loads((folder / "predictions.json").read_text())
    best: dict[int, dict] = {}
    for row in content["annotations"]:
        if row["score"] > best.get(row["image_id"], dict(score=0))["score"]:
            best[row["image_id"]] = row
    found = [best[image["id"]] for image in content["images"]]
    return np.array([[*row["bbox"], 10 * row["score"]] for row in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "bands", "dtype"),
    [
        ("segmentation", 1, "uint16"),
        ("segmentation", 4, "float32"),
        ("segmentation", 13, "uint16"),
        ("detection", 1, "float32"),
        ("detection", 4, "uint16"),
        ("detection", 13, "float32"),
    ],
)
def test_a_class_in_one_band_is_learnt(task, bands, dtype, tmp_path):
    root = draw(tmp_path / "set", task, bands, dtype)
    config, checkpoint, report = trained(tmp_path / "own", task, root)
    score = report["evaluation"]["scores"][METRIC[task]]
    reached, rgb_stays_below = REACHED[task]
    assert score > reached
    pictures = report["evaluation"]["pictures"]
    assert len(pictures) == 24 and all(p["truth"] != p["prediction"] for p in pictures[:3])
    if bands == 4:  # thirteen hold the colours as four do: a model of them alone is trained once
        colours = 'bands = ("red", "green", "blue")'
        scores = trained(tmp_path / "rgb", task, root, colours)[2]["evaluation"]["scores"]
        assert scores[METRIC[task]] < rgb_stays_below

    done("test.py", config, checkpoint, "--out", "metrics.json", cwd=tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics[METRIC[task]] == pytest.approx(
        score, abs=0.2 if task == "segmentation" else 1e-3
    )
    folder = root / ("images/val" if task == "segmentation" else "val")
    images = [folder / "0.tif", folder / "1.tif"]
    done("predict.py", config, checkpoint, *images, "--out", "model", cwd=tmp_path)
    if task == "segmentation":
        for name in ("0", "1"):
            truth = np.asarray(Image.open(root / "labels" / "val" / f"{name}.png"))
            assert (labels_of(tmp_path / "model", name) == truth).mean() > 0.9
    else:
        assert detections(tmp_path / "model").shape == (2, 5)
    exported_alike(task, bands, config, checkpoint, images, tmp_path)
    if bands == 4:  # what costs most is run once for each task
        augmented_and_tiled(task, config, checkpoint, images[1], score, tmp_path)
    if (task, bands) == ("segmentation", 4):
        corrupted(config, checkpoint, tmp_path)


def exported_alike(task, bands, config, checkpoint, images, folder):
    """Compare what an exported file and its model predict.

    Of detectors the file of a whole one takes half a minute: those of one and thirteen bands are
    compared by the AP with their file's backbone, which is what the bands reach.
    """
    kind = ("--part", "backbone") if task == "detection" and bands != 4 else ()
    done(
        "export.py", config, checkpoint, "--to", "onnx", "--out", "model.onnx", "--images", 2,
        *kind, cwd=folder,
    )  # fmt: skip
    report = json.loads((folder / "model.json").read_text())
    assert f"(N, {bands}, H, W)" in report["input"]
    if kind:
        (score,) = report["scores"].values()
        assert score["model"] > 0 and score["file"] == pytest.approx(score["model"], abs=1e-3)
        return
    done("predict.py", "model.onnx", *images, "--out", "file", cwd=folder)
    if task == "segmentation":
        for name in ("0", "1"):
            model, file = (labels_of(folder / each, name) for each in ("model", "file"))
            # A file resizes labels, the model its logits: borders differ.
            assert (model == file).mean() > 0.99
    else:
        model, file = (detections(folder / each) for each in ("model", "file"))
        np.testing.assert_allclose(model, file, atol=0.1)


def augmented_and_tiled(task, config, checkpoint, image, score, folder):
    """Test-time augmentation and tiles of a model of four bands, and tiles of its file."""
    protocol = dict(segmentation="paper", detection="flip")[task]
    done("test.py", config, checkpoint, "--tta", protocol, "--out", "tta.json", cwd=folder)
    metrics = json.loads((folder / "tta.json").read_text())
    assert metrics[METRIC[task]] > 0.7 * score
    done("predict.py", config, checkpoint, image, "--tile", 48, "--out", "tiles", cwd=folder)
    if task == "segmentation":
        tiled = tifffile.imread(folder / "tiles" / "labels" / "1.tif")
        assert (tiled == labels_of(folder / "model", "1")).mean() > 0.9
    else:
        done("predict.py", "model.onnx", image, "--tile", 48, "--out", "parts", cwd=folder)
        model, file = (detections(folder / each) for each in ("tiles", "parts"))
        np.testing.assert_allclose(model, file, atol=0.1)


def corrupted(config, checkpoint, folder):
    """Scores of corrupted bands, and the refusal of what is defined for RGB alone."""
    kinds = ("--corruptions", "gaussian_noise", "--severities", 3, "--images", 6)
    done("robustness.py", config, checkpoint, *kinds, "--work-dir", "robust", cwd=folder)
    record = json.loads((folder / "robust" / "robustness.json").read_text())
    assert set(record["corrupted"]) == {"gaussian_noise"}
    outcome = run_forked("robustness.py", config, checkpoint, "--corruptions", "fog", cwd=folder)
    assert_error(outcome, "unsupported", "fog")


@pytest.mark.slow
@pytest.mark.parametrize(("bands", "dtype"), [(1, "float32"), (4, "uint8"), (13, "uint16")])
def test_classes_in_one_band_are_learnt(bands, dtype, tmp_path):
    root = draw(tmp_path / "set", "classification", bands, dtype, images=64)
    config = tmp_path / "classifier.py"
    lines = (
        f"_base_ = {str(CLASSIFICATION)!r}",
        "import_arch = dict(_delete_=True, depths=[1, 1, 2, 1], dims=[16, 24, 32, 40])",
        "model = dict(num_classes=2, network=dict(arch=import_arch))",
        'classes = ("ground", "square")',
        "train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False,",
        "    dataset=dict(classes=classes))",
        "val_dataloader = dict(num_workers=0, persistent_workers=False,",
        "    dataset=dict(classes=classes))",
        "test_dataloader = val_dataloader",
        "val_evaluator = test_evaluator = dict(topk=(1,))",
        # Until the loss is down at the smoothed labels': at 9 epochs of 3e-3 top-1 was 65 to 100.
        "train_cfg = dict(max_epochs=16, val_interval=16)",
        "optim_wrapper = dict(optimizer=dict(lr=6e-3))",
        "warmup = dict(_base_.param_scheduler[0], end=10)",
        "param_scheduler = [warmup, dict(_base_.param_scheduler[1], end=16, T_max=16)]",
        "default_hooks = dict(checkpoint=dict(interval=16), report=dict(type='ReportHook'))",
        "randomness = dict(seed=0)",
        "del import_arch, classes, warmup",
    )
    config.write_text("\n".join(lines))
    run = tmp_path / "run"
    done("train.py", config, "--data", root, "--work-dir", run, cwd=tmp_path)
    scores = json.loads((run / "report.json").read_text())["evaluation"]["scores"]
    assert scores["top1"] >= 90
    (checkpoint,) = run.glob("*.pth")
    done("test.py", config, checkpoint, "--data", root, "--work-dir", "test", cwd=tmp_path)
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["top1"] == scores["top1"]
    square = root / "classes" / "val" / "square"
    found = done("predict.py", run / config.name, checkpoint, square, "--out", "out", cwd=tmp_path)
    assert found
    with (tmp_path / "out" / "predictions.csv").open() as file:
        best = [row["class"] for row in csv.DictReader(file) if row["rank"] == "1"]
    assert len(best) == 32 and best.count("square") >= 28


def break_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


HOSTILE = {
    "cut off": break_off,
    "band count": lambda path: write_tiff(path, np.ones((64, 64, 5), np.float32)),
    "dtype": lambda path: write_tiff(path, np.ones((64, 64, 4), np.uint16)),
    "NaN everywhere": lambda path: write_tiff(path, np.full((64, 64, 4), np.nan, np.float32)),
    "nodata everywhere": lambda path: write_tiff(path, np.full((64, 64, 4), -1, np.float32)),
    "empty": lambda path: path.write_bytes(b""),
    "bomb": lambda path: write_bomb(path),
}


def write_bomb(path: Path) -> None:
    """Write a file of some kilobytes that states 14.4 billion values."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            iter([b""] * 118**2), shape=(60000, 60000, 4), dtype=np.float32, tile=(512, 512),
            photometric="minisblack", planarconfig="contig", compression="zlib",
        )  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    root = draw(tmp_path_factory.mktemp("sound") / "set", "detection", 4, "float32", images=3)
    (root / "bands.json").write_text(json.dumps(dict(names=NAMES[4], nodata=-1)))
    return root


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("tool", ["doctor.py", "train.py"])
def test_hostile_rasters_end_in_a_line(tool, kind, sound, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(sound, root)
    hostile = root / "train" / "1.tif"
    HOSTILE[kind](hostile)
    config = write_config(tmp_path, "detection")
    outcome = run_here(tool, config, "--data", root, "--work-dir", tmp_path / "run")
    assert_error(outcome, "bad-image", hostile)


def test_a_corruption_of_rgb_is_refused_by_name():
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[LOAD]))))
    assert choose_corruptions(config, None) == tuple(
        name for name in CORRUPTIONS if name not in COLOUR_ONLY
    )
    with pytest.raises(InputError) as error:
        choose_corruptions(config, ["shot_noise", "frost"])
    assert error.value.code == "unsupported" and error.value.where == "frost"


@pytest.mark.parametrize("corruption", ["gaussian_noise", "zoom_blur", "elastic_transform"])
def test_bands_are_corrupted_as_grey_pictures(corruption):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 48, 1), np.uint8)
    image = (grey * [20.0, 0.01, 1.0, 1.0] + [1000, 0, 7, 7]).astype(np.float32)
    limits = [(1000, 6100), (0, 2.55), (7, 262), (7, 262)]
    found = corrupt_bands(image, corruption, 3, limits, name="a.tif", seed=1)
    assert found.dtype == image.dtype and found.shape == image.shape
    for band, (black, white) in enumerate(limits):
        name = f"a.tif {band}" if corruption == "gaussian_noise" else "a.tif"
        expected = corrupt(np.repeat(grey, 3, 2), corruption, 3, name=name, seed=1)[..., 0]
        assert (expected != grey[..., 0]).mean() > 0.5
        stretched = (found[..., band].astype(float) - black) / (white - black) * 255
        np.testing.assert_allclose(stretched, expected, atol=0.02)
    alike = (found[..., 2] == found[..., 3]).all()
    assert alike == (corruption != "gaussian_noise")
