"""Serve files in the layouts of published models, of networks a hundredth of the size.

They have the publishers' names and `meta`; `options` makes the named config equally small.
"""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmengine.registry import MODELS, DefaultScope
from mmseg.datasets import ADE20KDataset
from PIL import Image
from support.file_server import FileServer
from support.oracles import randomise

from backbones.openmmlab.config import load_config
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.weights import TARGETS, find_trained, from_official

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
DATASETS = {"mmdet": CocoDataset, "mmseg": ADE20KDataset}
# Further options of an evaluation that takes seconds.
VIEWS = {f"tta.paper.pipeline.1.transforms.0.{i}.scale": (32 * i + 64,) * 2 for i in range(6)}
EVALUATED = {
    name: {
        **small,
        **(VIEWS if name.startswith("upernet") else {}),
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "test_dataloader.dataset.pipeline.1.scale": (128, 128),
    }
    for name, small in SMALL.items()
}
PICTURES = 2


def options(name: str, of: dict[str, dict] = SMALL) -> list[str]:
    return ["--cfg-options", *(f"{key}={value}" for key, value in of[name].items())]


@cache
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
    for key, tensor in model.state_dict().items():
        if key.endswith(("rpn_reg.weight", "fc_reg.weight")):
            tensor.mul_(0.01)  # else boxes shrink to nothing or grow to the whole image
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
        CLASSES=DATASETS[scope].METAINFO["classes"],
        PALETTE=DATASETS[scope].METAINFO["palette"],
        epoch=36,
        iter=160000,
        hook_msgs=dict(best_score=np.float64(0.46)),
    )
    file = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=tensors), file)
    return file.getvalue()


def path_of(source: str) -> str:
    """Return the path of a URL's file on the mirror."""
    return "/" + source.partition("://")[2]


def put(server: FileServer, name: str, content: bytes) -> None:
    server.files[path_of(find_trained(name).source)] = content


def cached(tmp_path: Path) -> list[str]:
    """Return the names of the files in the cache."""
    return sorted(path.name for path in (tmp_path / "torch").rglob("*") if path.is_file())


def write_pictures(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for i in range(PICTURES):
        patches = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(patches).resize((96, 80)).save(folder / f"image_{i}.jpg", quality=95)
    return sorted(folder.iterdir())


def published_predictor(name: str, folder: Path) -> Predictor:
    """Return the published model, whose file is written into a folder, as it is evaluated."""
    path = folder / f"{name}.pth"
    path.write_bytes(published(name, "official"))
    return Predictor(load_config(name, EVALUATED[name]), str(path))


def write_predicted(root: Path) -> Path:
    """Write images in ADE20K's layout whose labels the published segmentor predicts: mIoU is 100.

    Returns:
        The folder of the data.
    """
    predictor = published_predictor("upernet_convnext_t", root)
    labels = root / "ade" / "annotations" / "validation"
    labels.mkdir(parents=True)
    seen: set[int] = set()
    for path in write_pictures(root / "ade" / "images" / "validation"):
        found = predictor(path).found
        seen |= set(np.unique(found).tolist())
        Image.fromarray((found + 1).astype(np.uint8)).save(labels / f"{path.stem}.png")
    assert len(seen) > 2
    return root / "ade"


def write_detected(root: Path) -> Path:
    """Write images in COCO's layout with the published detector's instances: its AP is 100.

    Returns:
        The folder of the data.
    """
    made = write_found(published_predictor("mask_rcnn_convnext_t", root), root / "coco")
    found = json.loads((made / "annotations" / "instances_val2017.json").read_text())
    assert len({row["category_id"] for row in found["annotations"]}) > 1
    assert min(row["area"] for row in found["annotations"]) > 64
    return made


def write_found(predictor: Predictor, root: Path) -> Path:
    """Write images in COCO's layout with a detector's instances; return the folder."""
    images: list[dict] = []
    annotations: list[dict] = []
    for i, path in enumerate(write_pictures(root / "val2017"), start=1):
        images.append(dict(id=i, file_name=path.name, width=96, height=80))
        for row in predictor(path).to_coco(image_id=i):
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({**row, "id": len(annotations) + 1, "area": area, "iscrowd": 0})
    categories = [dict(id=i, name=name) for i, name in enumerate(predictor.classes, start=1)]
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return root
