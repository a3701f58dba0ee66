"""Published models by name, end to end, from a local server (`support.published`)."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.published import EVALUATED, SMALL, cached, options, path_of, published, put
from support.running import assert_error, run_here, run_tool

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.weights import find_trained


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).resize((120, 80)).save(path)
    return path


def test_a_segmentor_by_name(mirror, photo, tmp_path):
    name = "upernet_convnext_t"
    put(mirror, name, published(name, "official"))
    out = tmp_path / "out"
    # In a process of its own, which says once whose model it is.
    outcome = run_tool("predict.py", name, photo, "--out", out, *options(name), cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "upernet_convnext_t.official" in outcome.out + outcome.err
    assert "MIT" in outcome.out + outcome.err
    labels = np.array(Image.open(out / "labels" / "photo.png"))
    assert labels.shape == (80, 120) and len(np.unique(labels)) > 1
    # In Python, offline now that it is cached; the file given by its address is the same model.
    result = Predictor(load_config(name, SMALL[name]))(photo)
    assert len(mirror.asked) == 1
    assert np.array_equal(result.found, labels)
    assert np.array_equal(result.pred_sem_seg.data[0].cpu().numpy(), labels)
    saved = result.save(tmp_path / "drawn.jpg")
    assert min(Image.open(saved).size) >= 480
    with pytest.raises(InputError) as caught:
        result.to_coco()
    assert caught.value.code == "unsupported"
    with pytest.raises(InputError) as caught:
        result.save(tmp_path / "drawn.txt")
    assert caught.value.code == "bad-value"


@pytest.mark.parametrize("name", SMALL)
def test_openmmlabs_layout_is_the_same_model(name, mirror, photo, tmp_path):
    """Load theirs by URL: the digits in a published name are the checksum of the real file."""
    mirror.files["/theirs.pth"] = published(name, "openmmlab")
    path = tmp_path / "ours.pth"
    path.write_bytes(published(name, "official"))
    config = load_config(name, SMALL[name])
    here = mirror.address.partition("://")[2]
    mirror.files[f"/{here}/theirs.pth"] = mirror.files["/theirs.pth"]
    one = Predictor(config, f"{mirror.address}/theirs.pth")(photo)
    other = Predictor(config, path)(photo)
    for key, tensor in Predictor(config, path).model.state_dict().items():
        assert tensor.isfinite().all(), key
    if name.startswith("upernet"):
        assert np.array_equal(one.found, other.found) and len(np.unique(one.found)) > 1
    else:
        assert len(one.found) > 1 and one.found.scores.max() > 0
        assert np.array_equal(one.found.boxes, other.found.boxes)


def test_a_detector_by_name(mirror, photo, tmp_path):
    name = "mask_rcnn_convnext_t"
    put(mirror, name, published(name, "official"))
    result = Predictor(load_config(name, SMALL[name]))(str(photo))
    rows = result.to_coco(image_id=7)
    assert len(rows) == len(result.pred_instances) > 1
    assert [row["id"] for row in rows] == [*range(1, len(rows) + 1)]
    assert {row["image_id"] for row in rows} == {7}
    assert rows[0]["segmentation"]["size"] == [80, 120]
    detections = result.to_supervision()
    assert np.allclose(detections.xyxy, result.pred_instances.bboxes.cpu().numpy())
    masks = result.pred_instances.masks.cpu().numpy()
    assert np.array_equal(detections.mask, masks)
    assert detections.data["class_name"][0] == result.classes[int(detections.class_id[0])]
    json.dumps(rows)
    assert result.save(tmp_path / "drawn.png", score=0.0).is_file()


def test_another_file_than_the_name_promises(mirror, photo, tmp_path):
    model = find_trained("upernet_convnext_t.openmmlab")
    content = published("upernet_convnext_t", "openmmlab")
    assert not hashlib.sha256(content).hexdigest().startswith(model.sha256)
    put(mirror, model.name, content)
    outcome = run_here("predict.py", model.name, photo, "--out", tmp_path / "out")
    assert_error(outcome, "broken-file", model.sha256)
    assert not cached(tmp_path)
    assert not (tmp_path / "out").exists()


def test_offline_is_one_line(mirror, photo):
    outcome = run_here("predict.py", "upernet_convnext_t", photo, "--offline")
    assert_error(outcome, "download-failed", find_trained("upernet_convnext_t").source, "torch")
    assert not mirror.asked


def test_evaluated_by_name(mirror, predicted, tmp_path, monkeypatch):
    """Its ground truth is its own prediction."""
    monkeypatch.chdir(tmp_path)
    name = "upernet_convnext_t"
    put(mirror, name, published(name, "official"))
    where = ("--data", predicted, "--out", "metrics.json")
    outcome = run_here("test.py", name, *where, *options(name, EVALUATED))
    assert outcome.status == 0, outcome.err
    metrics = json.loads(Path("metrics.json").read_text())
    assert metrics["mIoU"] == metrics["aAcc"] == 100.0
    assert len(mirror.asked) == 1


@pytest.mark.slow
def test_training_starts_from_a_name(mirror, shapes, tmp_path):
    """At a rate of zero every weight stays that of the published file."""
    name = "upernet_convnext_t"
    put(mirror, name, published(name, "official"))
    few = {
        **SMALL[name],
        "model.data_preprocessor.size": (64, 64),
        "optim_wrapper.optimizer.lr": 0.0,
        "train_cfg.max_iters": 1,
        "train_cfg.val_interval": 10,
        "train_dataloader.batch_size": 2,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_dataloader.dataset.pipeline.2.scale": (64, 64),
        "train_dataloader.dataset.pipeline.3.crop_size": (64, 64),
        "default_hooks.checkpoint.interval": 1,
        "param_scheduler": None,
    }
    changed = ("--cfg-options", *(f"{key}={value}" for key, value in few.items()))
    outcome = run_tool(
        "train.py", name, "--data", shapes, "--init-from", name, "--global-batch", 2, *changed,
        cwd=tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert [path for path, _ in mirror.asked] == [path_of(find_trained(name).source)]
    trained = torch.load(tmp_path / "work_dirs" / name / "iter_1.pth", weights_only=False)
    theirs = torch.load(io.BytesIO(published(name, "official")), weights_only=False)["state_dict"]
    for key, tensor in trained["state_dict"].items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(tensor, theirs[key]), key
