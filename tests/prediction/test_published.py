"""Published models by name, end to end, from a local server with files in the publishers' layouts.

The files have the publishers' `meta` and names, but networks a hundredth of the size:
`--cfg-options` makes the named config equally small.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from support.file_server import FileServer, serving
from support.oracles import randomise
from support.running import assert_error, run_here, run_tool

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.weights import TARGETS, find_trained, from_official
from backbones.weights.sources import MIRROR, OFFLINE

SEGMENTOR = {
    "model.backbone.arch": "atto",
    "model.decode_head.channels": 16,
    "model.auxiliary_head.channels": 8,
    "model.backbone.init_cfg": None,
}
DETECTOR = {
    "model.backbone.arch": "atto",
    "model.backbone.init_cfg": None,
    "model.test_cfg.rcnn.score_thr": 0.0,
    "model.test_cfg.rcnn.max_per_img": 5,
    "model.test_cfg.rpn.max_per_img": 20,
    "test_dataloader.dataset.pipeline.1.scale": (160, 160),
}
SMALL = {"upernet_convnext_t": SEGMENTOR, "mask_rcnn_convnext_t": DETECTOR}


def options(name: str) -> list[str]:
    return ["--cfg-options", *(f"{key}={value}" for key, value in SMALL[name].items())]


def published(name: str, layout: str) -> bytes:
    """Return a file in a publisher's layout: `meta` as mmcv 1 writes it, their backbone's names."""
    config = load_config(name, SMALL[name])
    scope = config.default_scope
    torch.manual_seed(1)
    DefaultScope.get_instance(f"published-{name}-{layout}", scope_name=scope)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config.model)
    for head in ("rpn_head", "roi_head", "decode_head"):
        if hasattr(model, head):
            randomise(getattr(model, head))
    tensors = model.state_dict()
    if layout == "openmmlab":
        prefix = "backbone."
        ours = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        theirs = from_official(ours, TARGETS["mmpretrain"])
        tensors = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
        tensors |= {prefix + k.removeprefix(prefix): v for k, v in theirs.items()}
        assert "backbone.stages.0.0.depthwise_conv.weight" in tensors
    meta = dict(
        env_info="sys.platform: linux",
        mmdet_version="2.16.0",
        config="model = dict(type='EncoderDecoder')",
        CLASSES=("wall", "building"),
        PALETTE=[[120, 120, 120], [180, 120, 120]],
        epoch=36,
        iter=160000,
        hook_msgs=dict(best_score=np.float64(0.46)),
    )
    file = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=tensors), file)
    return file.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(OFFLINE, raising=False)
    with serving() as server:
        monkeypatch.setenv(MIRROR, server.address)
        yield server


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).resize((120, 80)).save(path)
    return path


def put(server: FileServer, name: str, content: bytes) -> None:
    server.files["/" + find_trained(name).source.partition("://")[2]] = content


def test_a_segmentor_by_name(server, photo, tmp_path):
    name = "upernet_convnext_t"
    put(server, name, published(name, "official"))
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
    assert len(server.asked) == 1
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
def test_openmmlabs_layout_is_the_same_model(name, server, photo, tmp_path):
    """Load theirs by URL: the digits in a published name are the checksum of the real file."""
    server.files["/theirs.pth"] = published(name, "openmmlab")
    path = tmp_path / "ours.pth"
    path.write_bytes(published(name, "official"))
    config = load_config(name, SMALL[name])
    here = server.address.partition("://")[2]
    server.files[f"/{here}/theirs.pth"] = server.files["/theirs.pth"]
    one = Predictor(config, f"{server.address}/theirs.pth")(photo)
    other = Predictor(config, path)(photo)
    for key, tensor in Predictor(config, path).model.state_dict().items():
        assert tensor.isfinite().all(), key
    if name.startswith("upernet"):
        assert np.array_equal(one.found, other.found) and len(np.unique(one.found)) > 1
    else:
        assert len(one.found) > 1 and one.found.scores.max() > 0
        assert np.array_equal(one.found.boxes, other.found.boxes)


def test_a_detector_by_name(server, photo, tmp_path):
    name = "mask_rcnn_convnext_t"
    put(server, name, published(name, "official"))
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


def test_another_file_than_the_name_promises(server, photo, tmp_path):
    model = find_trained("upernet_convnext_t.openmmlab")
    content = published("upernet_convnext_t", "openmmlab")
    assert not hashlib.sha256(content).hexdigest().startswith(model.sha256)
    put(server, model.name, content)
    outcome = run_here("predict.py", model.name, photo, "--out", tmp_path / "out")
    assert_error(outcome, "broken-file", model.sha256)
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]
    assert not (tmp_path / "out").exists()


def test_offline_is_one_line(server, photo, tmp_path, monkeypatch):
    monkeypatch.setenv(OFFLINE, "")  # what --offline sets is taken back
    outcome = run_here("predict.py", "upernet_convnext_t", photo, "--offline")
    assert_error(outcome, "download-failed", find_trained("upernet_convnext_t").source, "torch")
    assert not server.asked
