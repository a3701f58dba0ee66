"""Train, resume, evaluate, predict: the tools on small data, end to end, for both tasks."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.deterministic import DETERMINISTIC, losses, two_equal_halves
from support.forked import run_forked
from support.running import DETECTION, REPOSITORY, SEGMENTATION, command

QUICK = (
    "train_dataloader.num_workers=1",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "default_hooks.logger.interval=1",
    "randomness.seed=0",
)
VALIDATION = ("val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False")
EPOCHS = (
    *QUICK,
    *VALIDATION,
    "train_cfg.max_epochs=2",
    "train_cfg.val_interval=2",
    "param_scheduler.0.start_factor=1.0",
    "model.test_cfg.rcnn.score_thr=0.001",  # nothing scores more after four steps
)
ITERATIONS = (
    *QUICK,
    *VALIDATION,
    "train_cfg.max_iters=6",
    "train_cfg.val_interval=6",
    "default_hooks.checkpoint.interval=3",
    "train_dataloader.batch_size=2",
)
SCORES = {"detection": ["coco/bbox_mAP", "coco/segm_mAP"], "segmentation": ["mIoU"]}


@pytest.mark.parametrize(
    "config, options, step, image_folder",
    [
        (DETECTION, EPOCHS, "epoch_{}.pth", "val2017"),
        pytest.param(
            *(SEGMENTATION, ITERATIONS, "iter_{}.pth", "images/validation"), marks=pytest.mark.slow
        ),
    ],
    ids=["detection", "segmentation"],
)
def test_train_resume_evaluate_predict(config, options, step, image_folder, shapes, tmp_path):
    task = config.parent.name
    last, middle = (2, 1) if task == "detection" else (6, 3)
    arguments = (config, "--data", shapes, "--work-dir", tmp_path / "run")
    trained = run_forked("train.py", *arguments, "--cfg-options", *options, cwd=tmp_path)
    assert trained.status == 0, trained.err
    curve = losses(trained.out)
    assert len(curve) == (4 if task == "detection" else 6)
    assert all(np.isfinite(curve)) and np.mean(curve[-2:]) < curve[0]
    for words in ("SyncBN becomes BN", "float32 instead of bfloat16", r"eta: \d", r"memory: \d"):
        assert len(re.findall(words, trained.out)) >= 1, words
    final = tmp_path / "run" / step.format(last)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == str(final)

    # Resumed from the middle, the schedule goes on where it was and ends at the same step.
    resumed_dir = tmp_path / "resumed"
    resumed_dir.mkdir()
    checkpoint = tmp_path / "run" / step.format(middle)
    (resumed_dir / checkpoint.name).write_bytes(checkpoint.read_bytes())
    (resumed_dir / "last_checkpoint").write_text(str(resumed_dir / checkpoint.name))
    arguments = (config, "--data", shapes, "--work-dir", resumed_dir, "--resume")
    resumed = run_forked("train.py", *arguments, "--cfg-options", *options, cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    assert len(losses(resumed.out)) == len(curve) // 2
    one, two = (
        torch.load(d / step.format(last), weights_only=False)
        for d in (tmp_path / "run", resumed_dir)
    )
    assert one["meta"]["iter"] == two["meta"]["iter"]
    rates = [[g["lr"] for g in c["optimizer"]["param_groups"]] for c in (one, two)]
    assert rates[0] == pytest.approx(rates[1])

    arguments = (config, final, "--data", shapes, "--work-dir", tmp_path / "run")
    tested = run_forked("test.py", *arguments, "--cfg-options", *options, cwd=tmp_path)
    assert tested.status == 0, tested.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    validated = {
        key: float(re.findall(rf"{key}: ([\d.-]+)", trained.out)[-1]) for key in SCORES[task]
    }
    for key, value in validated.items():
        assert metrics[key] == pytest.approx(value, abs=1e-3)

    images = shapes / image_folder
    out = tmp_path / "predictions"
    predicted = run_forked("predict.py", config, final, images, "--out", out, cwd=tmp_path)
    assert predicted.status == 0, predicted.err
    pictures = sorted((out / "pictures").iterdir())
    assert [p.stem for p in pictures] == sorted(p.stem for p in images.iterdir())
    assert min(Image.open(pictures[0]).size) >= 480
    if task == "detection":
        from pycocotools.coco import COCO

        coco = COCO(out / "predictions.json")
        assert len(coco.imgs) == 4
        for row in coco.anns.values():
            assert coco.annToMask(row).shape == (96, 96)
            assert 0 <= row["score"] <= 1 and coco.cats[row["category_id"]]["name"]
    else:
        labels = np.array(Image.open(out / "labels" / pictures[0].name))
        assert labels.shape == (96, 96) and labels.max() < 8


@pytest.mark.slow
def test_nothing_to_resume_is_said(shapes, tmp_path):
    options = (*QUICK, *VALIDATION, "train_cfg.max_iters=1", "train_dataloader.batch_size=2")
    arguments = (SEGMENTATION, "--data", shapes, "--resume", "--cfg-options", *options)
    outcome = run_forked("train.py", *arguments, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "no checkpoint" in outcome.out
    assert (tmp_path / "work_dirs" / "upernet_convnext_atto_demo" / "iter_1.pth").is_file()


@pytest.mark.parametrize("protocol", ["paper", "mmseg"])
def test_tta_protocols(protocol, shapes, tmp_path):
    """Both run; the sizes that reach the network are those of their rule."""
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    from backbones.openmmlab.config import load_config, use_tta

    config = load_config(REPOSITORY / "configs" / "segmentation" / "upernet_convnext_t.py")
    use_tta(config, protocol)
    DefaultScope.get_instance(f"tta-{protocol}", scope_name="mmseg")
    steps = [s for s in config.test_dataloader.dataset.pipeline]
    steps[1].transforms = [steps[1].transforms[i] for i in (0, 1, 3)]  # no labels here
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(
        tmp_path / "x.jpg"
    )
    packed = Compose(steps)(dict(img_path=str(tmp_path / "x.jpg")))
    sizes = [tuple(x.shape[1:]) for x in packed["inputs"]]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    if protocol == "paper":
        # The short side is 512 r, as in mmseg 0.x's MultiScaleFlipAug with ratios of (2048, 512).
        expected = [(int(512 * r), int(512 * r * 400 / 300 + 0.5)) for r in ratios]
        assert config.model.module.test_cfg.mode == "whole"
    else:
        expected = [(int(300 * r + 0.5), int(400 * r + 0.5)) for r in ratios]
        assert config.model.module.test_cfg.mode == "slide"
    assert sizes == [size for size in expected for _ in range(2)]
    flips = [bool(s.metainfo.get("flip")) for s in packed["data_samples"]]
    assert flips == [False, True] * 6


def test_coco_figures_equal_pycocotools(real_data):
    """Box and mask AP of faster-coco-eval to the last digit, on real annotations with crowds."""
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = real_data / "coco_mini" / "annotations" / "instances_val2017.json"
    truth = COCO(path)
    rng = np.random.default_rng(0)
    results = []
    for row in truth.anns.values():
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = row["bbox"]
            moved = np.roll(truth.annToMask(row), rng.integers(-6, 6, 2), (0, 1))
            from pycocotools import mask

            code = mask.encode(np.asfortranarray(moved))
            results.append(
                dict(
                    image_id=row["image_id"],
                    category_id=row["category_id"] if rng.random() < 0.9 else 1,
                    bbox=[x + rng.normal(0, 0.1 * w), y + rng.normal(0, 0.1 * h), w, h],
                    segmentation=dict(size=code["size"], counts=code["counts"].decode()),
                    score=float(rng.random()),
                )
            )
    fast = FastCOCO(str(path))
    for kind in ("bbox", "segm"):
        figures = []
        for api, evaluator in ((truth, COCOeval), (fast, COCOeval_faster)):
            run = evaluator(api, api.loadRes([dict(r) for r in results]), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            figures.append(np.array(run.stats[:12], dtype=float))
        assert 0.1 < figures[0][0] < 0.9
        np.testing.assert_allclose(figures[0], figures[1], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_two_ranks_equal_one_at_the_same_global_batch_size(config, shapes, tmp_path):
    import shutil
    import subprocess

    task = config.parent.name
    data = two_equal_halves(Path(shutil.copytree(shapes, tmp_path / "data")), task)
    curves, weights = [], []
    for processes in (1, 2):
        path = tmp_path / f"on_{processes}.py"
        text = DETERMINISTIC[task].format(base=str(config), batch=4 // processes)
        path.write_text(text)
        work_dir = tmp_path / f"run_{processes}"
        arguments = (path, "--data", data, "--work-dir", work_dir)
        argv = command("train.py", *arguments)
        if processes == 2:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
            argv = [*torchrun, "--master-port", "29731", *argv[1:], "--launcher", "pytorch"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        curves.append(losses(done.stdout))
        (saved,) = work_dir.glob("*_*.pth")
        weights.append(torch.load(saved, weights_only=False)["state_dict"])
    assert len(curves[0]) == len(curves[1]) == 4
    # The log prints each rank's own loss; the images being the same, so are the losses.
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
    assert abs(curves[0][0] - curves[0][-1]) > 0.01  # the steps that agree have moved the model
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


REAL = {
    "detection": (
        "cascade_convnext_t.py",
        "coco_mini",
        "val2017",
        (
            "train_cfg.max_epochs=1",
            "train_dataloader.dataset.indices=8",
            "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(160,256)]",
            "train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(160,256)]",
            "test_dataloader.dataset.pipeline.1.scale=(256,160)",
            "test_dataloader.dataset.indices=4",
            "model.train_cfg.rpn_proposal.max_per_img=200",
            "model.test_cfg.rpn.max_per_img=100",
            *(f"model.train_cfg.rcnn.{i}.sampler.num=64" for i in range(3)),
        ),
    ),
    "segmentation": (
        "upernet_convnext_t.py",
        "ade_mini",
        "images/validation",
        (
            "train_cfg.max_iters=8",
            "train_dataloader.dataset.indices=2",
            "train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)",
            "optim_wrapper.optimizer.lr=0.0005",
            "train_dataloader.dataset.pipeline.2.scale=(512,128)",
            "train_dataloader.dataset.pipeline.3.crop_size=(128,128)",
            "model.data_preprocessor.size=(128,128)",
            "model.test_cfg.crop_size=(128,128)",
            "model.test_cfg.stride=(85,85)",
            "test_dataloader.dataset.pipeline.1.scale=(512,128)",
            "test_dataloader.dataset.indices=4",
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_real_images(task, real_data, tmp_path):
    """The real T models on photographs: a falling loss, a checkpoint, resume, scores, pictures."""
    name, folder, images, options = REAL[task]
    config = REPOSITORY / "configs" / task / name
    common = (*QUICK, *options, "model.backbone.init_cfg=None")
    warm = ("param_scheduler.0.end=2", "val_cfg=None", "val_dataloader=None", "val_evaluator=None")
    arguments = (config, "--data", real_data / folder, "--work-dir", "run")
    few = (*arguments, "--global-batch", 2)  # the recipes' 16 would be one step
    trained = run_forked("train.py", *few, "--cfg-options", *common, *warm, cwd=tmp_path)
    assert trained.status == 0, trained.err[-2000:]
    curve = losses(trained.out)
    assert len(curve) == (4 if task == "detection" else 8)
    assert all(np.isfinite(curve)) and np.mean(curve[-2:]) < np.mean(curve[:2])

    longer = "train_cfg.max_epochs=2" if task == "detection" else "train_cfg.max_iters=10"
    resumed = run_forked(
        "train.py", *few, "--resume", "--cfg-options", *common, *warm, longer, cwd=tmp_path
    )
    assert resumed.status == 0, resumed.err[-2000:]
    assert losses(resumed.out) and all(np.isfinite(losses(resumed.out)))
    last = Path((tmp_path / "run" / "last_checkpoint").read_text())
    assert last.name == ("epoch_2.pth" if task == "detection" else "iter_10.pth")

    arguments = (config, last, "--data", real_data / folder, "--work-dir", "run")
    tested = run_forked("test.py", *arguments, "--cfg-options", *common, cwd=tmp_path)
    assert tested.status == 0, tested.err[-2000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(SCORES[task]) <= set(metrics)

    chosen = sorted((real_data / folder / images).iterdir())[:2]
    arguments = (config, last, *chosen, "--score", "0.01", "--cfg-options", *common)
    predicted = run_forked("predict.py", *arguments, cwd=tmp_path)
    assert predicted.status == 0, predicted.err[-2000:]
    for path in chosen:
        assert (tmp_path / "predictions" / "pictures" / f"{path.stem}.png").is_file()
