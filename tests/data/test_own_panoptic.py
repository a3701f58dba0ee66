"""Own things and stuff: `--data` with a panoptic recipe, what is checked, PQ by class."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, METRICS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from support.running import REPOSITORY

from backbones import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.data.shapes import DEMO_GROUNDS, DEMO_SHAPES
from backbones.openmmlab.detection.figures import detection_figures
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.doctor.complexity import build_on_meta
from backbones.openmmlab.panoptic_quality import rgb2id
from backbones.openmmlab.report.page import render
from backbones.openmmlab.tasks import task_of

RECIPE = REPOSITORY / "configs" / "detection" / "mask2former_panoptic_convnext_t.py"


@pytest.fixture
def config(shapes, tmp_path):
    config = load_config(RECIPE)
    use_data(config, shapes, tmp_path)
    return config


@pytest.fixture
def own(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / "own")


def test_counts_of_things_and_stuff_follow_the_data(config, shapes):
    head = build_on_meta(config).panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (4, 4)
    assert head.cls_embed.out_features == 9
    assert head.loss_cls.class_weight == [1.0] * 8 + [0.1]
    meta = config.train_dataloader.dataset.metainfo
    assert (meta.thing_classes, meta.stuff_classes) == (DEMO_SHAPES, DEMO_GROUNDS)
    (metric,) = config.val_evaluator
    assert metric.type == "CocoPanopticMetric"
    assert metric.seg_prefix == str(shapes / "annotations" / "panoptic_val2017")
    check_data(config, ("train", "val", "test"))


def test_segments_are_those_of_the_label_maps(config, shapes):
    """mmdet's data set and its own loading give the demo set's label maps again."""
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadPanopticAnnotations")]
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build({**config.val_dataloader.dataset, "pipeline": pipeline})
    assert len(dataset) == 4
    for i in range(len(dataset)):
        loaded = dataset[i]
        path = shapes / "annotations" / "validation" / f"ADE_val_{i + 1:08}.png"
        assert (loaded["gt_seg_map"] == np.asarray(Image.open(path)).astype(int) - 1).all()
        assert len(loaded["gt_bboxes"]) == sum(label < 4 for label in loaded["gt_bboxes_labels"])


def test_stuff_before_things_is_reordered(own, tmp_path):
    for path in (own / "annotations").glob("panoptic_*.json"):
        content = json.loads(path.read_text())
        content["categories"].reverse()
        path.write_text(json.dumps(content))
    config = load_config(RECIPE)
    use_data(config, own, tmp_path / "work")
    assert config.train_dataloader.dataset.metainfo.classes == [
        *reversed(DEMO_SHAPES),
        *reversed(DEMO_GROUNDS),
    ]
    written = json.loads(open(config.train_dataloader.dataset.ann_file).read())
    assert [c["isthing"] for c in written["categories"]] == [1] * 4 + [0] * 4
    check_data(config, ("train", "val"))


def test_what_is_wrong_is_named(own, tmp_path):
    def code() -> tuple[str, str]:
        with pytest.raises(InputError) as caught:
            use_data(load_config(RECIPE), own, tmp_path / "work")
        return caught.value.code, str(caught.value)

    path = own / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    del content["categories"][5]["isthing"]
    path.write_text(json.dumps(content))
    assert code()[0] == "bad-annotations" and DEMO_GROUNDS[1] in code()[1]
    path.write_text(json.dumps({**content, "annotations": [dict(id=1)]}))
    assert code()[0] == "bad-annotations" and "annotations[0]" in code()[1]
    for path in (own / "annotations").glob("panoptic_*.json"):
        path.unlink()
    assert code()[0] == "no-data"


def test_quality_by_class_is_in_the_report(config, shapes):
    """The ground truth with one segment taken away: each class's PQ, and the mean mmdet gives."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        metric = METRICS.build(config.val_evaluator[0])
    meta = config.val_dataloader.dataset.metainfo
    metric.dataset_meta = dict(meta)
    figures = detection_figures([metric], meta, 2)
    content = json.loads((shapes / "annotations" / "panoptic_val2017.json").read_text())
    for image, row in zip(content["images"], content["annotations"], strict=True):
        file = shapes / "annotations" / "panoptic_val2017" / row["file_name"]
        ids = rgb2id(np.asarray(Image.open(file)))
        values = np.full(ids.shape, 8, np.int32)
        segments = row["segments_info"]
        for number, segment in enumerate(segments[1:] if image["id"] == 1 else segments, start=1):
            label = segment["category_id"] - 1
            values[ids == segment["id"]] = label + 1000 * number * (label < 4)
        path = str(shapes / "val2017" / image["file_name"])
        sample = BaseDataElement(
            metainfo=dict(img_id=image["id"], img_path=path, ori_shape=ids.shape)
        )
        sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(values)[None])
        metric.process({}, [sample.to_dict() | dict(img_id=image["id"], img_path=path)])
        figures.add(sample)
    means = metric.compute_metrics(metric.results)
    found = figures.to_dict()
    rows = {row["name"]: row for row in found["per_class"]}
    lost = meta.classes[content["annotations"][0]["segments_info"][0]["category_id"] - 1]
    occurring = [row for row in rows.values() if row["PQ"] == row["PQ"]]
    assert rows[lost]["PQ"] < 1 and rows[lost]["RQ"] < 1 and rows[lost]["SQ"] in (0, 1)
    assert all(row["PQ"] == 1 for row in occurring if row["name"] != lost)
    mean = sum(row["PQ"] for row in occurring) / len(occurring)
    assert means["PQ"] == pytest.approx(100 * mean) and 50 < means["PQ"] < 100
    assert sum(row["objects"] for row in rows.values()) == sum(
        len(row["segments_info"]) for row in content["annotations"]
    )
    worst = found["pictures"][0]
    assert worst["score"] < found["pictures"][1]["score"] == 1
    task = task_of(config)
    page = render(dict(evaluation=found, layout=asdict(task.report_layout), metrics=[]))
    assert all(word in page for word in (">PQ<", ">SQ<", ">RQ<", *meta.classes))
    assert f"PQ {worst['score']:.2f}" in page
