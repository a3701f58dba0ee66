"""Panoptic quality by mmdet's own counting, without panopticapi."""

import pickle

import numpy as np
import pytest
from PIL import Image
from support.running import REPOSITORY

import backbones.openmmlab.detection  # noqa: F401
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.config_edits import set_class_count
from backbones.openmmlab.data.own_data import change_place
from backbones.openmmlab.detection import DETECTION
from backbones.openmmlab.doctor.complexity import build_on_meta
from backbones.openmmlab.panoptic_quality import PQStat, id2rgb, rgb2id

CONFIGS = REPOSITORY / "configs" / "detection"
# Segments 1 and 2 are things of class 0, segment 300000 is stuff of class 1.
STUFF = 300_000
CATEGORIES = {
    0: dict(id=0, name="thing", isthing=1),
    1: dict(id=1, name="stuff", isthing=0),
    2: dict(id=2, name="absent", isthing=1),
}


def written(path, label_map, classes):
    Image.fromarray(id2rgb(label_map)).save(path)
    segments = [
        dict(id=int(i), category_id=classes[int(i)], iscrowd=0, area=int((label_map == i).sum()))
        for i in np.unique(label_map)
        if i
    ]
    return dict(image_id=1, file_name=path.name, segments_info=segments)


def test_quality_is_that_of_its_definition(tmp_path):
    from mmdet.evaluation.functional.panoptic_utils import pq_compute_single_core

    truth = np.full((10, 10), STUFF)
    truth[:4, :5], truth[6:, :5] = 1, 2
    found = np.full((10, 10), STUFF)
    found[:4, :4] = 1  # 16 of 20: IoU 0.8
    found[6:, 6:] = 7  # a thing where there is stuff, and none where the second thing is
    for folder in ("truth", "found"):
        (tmp_path / folder).mkdir()
    pair = (
        written(tmp_path / "truth" / "1.png", truth, {1: 0, 2: 0, STUFF: 1}),
        written(tmp_path / "found" / "1.png", found, {1: 0, 7: 0, STUFF: 1}),
    )
    counted = pq_compute_single_core(
        0, [pair], str(tmp_path / "truth"), str(tmp_path / "found"), CATEGORIES
    )
    total = PQStat()
    total += pickle.loads(pickle.dumps(counted))  # as it travels between ranks
    total += counted
    things, by_class = total.pq_average(CATEGORIES, isthing=True)
    assert things["n"] == 1  # the absent class does not count
    assert things["sq"] == pytest.approx(0.8)
    assert things["rq"] == pytest.approx(2 / (2 + 0.5 * 2 + 0.5 * 2))
    assert things["pq"] == pytest.approx(0.8 * 0.5) == by_class[0]["pq"]
    stuff, _ = total.pq_average(CATEGORIES, isthing=False)
    here, there = truth == STUFF, found == STUFF
    iou = (here & there).sum() / (here | there).sum()
    assert stuff["pq"] == stuff["sq"] == pytest.approx(iou) and stuff["rq"] == 1
    both, _ = total.pq_average(CATEGORIES, isthing=None)
    assert both["pq"] == pytest.approx((0.4 + iou) / 2)


def test_numbers_survive_their_colours():
    numbers = np.array([[0, 1, 255], [256, 65_536, 16_777_215]])
    assert (rgb2id(id2rgb(numbers)) == numbers).all()
    assert id2rgb(np.array([[1 + 256 * 2 + 65_536 * 3]])).tolist() == [[[1, 2, 3]]]


def test_quality_is_a_metric_of_the_task():
    metric = DETECTION.metric("coco_panoptic/PQ")
    assert metric is not None and metric.main and metric.best == 100
    assert not DETECTION.metric("coco_panoptic/SQ_th").main


@pytest.mark.parametrize("name", ["mask2former_convnext_t", "mask2former_panoptic_convnext_t"])
def test_heads_of_things_and_stuff_follow_the_data(name):
    config = load_config(CONFIGS / f"{name}.py")
    set_class_count(config.model, 3)
    model = build_on_meta(config)
    head, fusion = model.panoptic_head, model.panoptic_fusion_head
    assert head.cls_embed.out_features == 4 and head.loss_cls.class_weight == [1.0] * 3 + [0.1]
    assert (head.num_things_classes, fusion.num_things_classes) == (3, 3)
    assert (head.num_stuff_classes, fusion.num_stuff_classes) == (0, 0)


def test_every_evaluator_follows_the_data(tmp_path):
    config = load_config(CONFIGS / "mask2former_panoptic_convnext_t.py")
    change_place(config, tmp_path)
    panoptic, instances = config.val_evaluator
    folder = tmp_path / "annotations"
    assert panoptic.ann_file == str(folder / "panoptic_val2017.json")
    assert panoptic.seg_prefix == str(folder / "panoptic_val2017")
    assert instances.ann_file == str(folder / "instances_val2017.json")
    assert config.val_dataloader.dataset.data_root == str(tmp_path)
