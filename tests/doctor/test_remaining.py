"""What is left of a dataset is counted by mmdet's own rules, and nothing left is an error."""

import json
import re
import shutil
from pathlib import Path

import pytest
from support.running import DETECTION

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.own_data import change_place
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.doctor.remaining import check_evaluated, check_trained

IMAGES = [dict(id=number, width=40, height=30) for number in (1, 2, 3)]
IMAGES_OF_FILES = [image | dict(file_name=f"{image['id']}.jpg") for image in IMAGES]
TRAIN = "annotations/instances_train2017.json"
VAL = "annotations/instances_val2017.json"


def thing(image: int, **changes) -> dict:
    row = dict(id=image, image_id=image, category_id=7, bbox=[1, 2, 10, 20], area=200, iscrowd=0)
    return row | changes


@pytest.mark.parametrize(
    "changes, name",
    [
        (dict(iscrowd=1), "iscrowd"),
        (dict(area=0), "area"),
        (dict(bbox=[1, 2, 0.5, 20]), "pixel"),
        (dict(bbox=[40, 2, 10, 20]), "images"),
        (dict(bbox=[1, 2, 3]), "bbox"),
        (dict(ignore=1), "ignore"),
        (dict(category_id=8), "categories"),
    ],
)
def test_no_object_is_left_to_train_on(changes, name):
    (issue,) = check_trained(IMAGES, [thing(1, **changes), thing(2, **changes)], {7}, "a.json")
    assert (issue.severity, issue.where, issue.code) == ("error", "a.json", "no-data")
    assert re.findall(r"\d+", issue.text)[:2] == ["2", "2"] and name in issue.text


def test_no_image_is_left_to_train_on():
    rows = [thing(1), thing(2)]
    (issue,) = check_trained(IMAGES, rows, {7}, "a.json", min_size=31, drop_empty=True)
    assert (issue.severity, issue.code) == ("error", "no-data")
    assert {"3", "2", "31", "1"} <= set(re.findall(r"\d+", issue.text))
    assert "filter_cfg.min_size" in issue.text and "filter_cfg.filter_empty_gt" in issue.text


def test_counts_of_what_is_left():
    rows = [thing(1), thing(1, iscrowd=1), thing(2, area=0), thing(2), thing(2)]
    images, objects = check_trained(IMAGES, rows, {7}, "a.json", drop_empty=True)
    assert images.severity == objects.severity == "note"
    assert [re.findall(r"\d+", issue.text)[:2] for issue in (images, objects)] == [
        ["2", "3"],
        ["3", "5"],
    ]
    (issue,) = check_trained(IMAGES, [thing(1, area=0), thing(2, area=0), thing(3)], {7}, "a.json")
    assert issue.severity == "warning" and re.findall(r"\d+", issue.text)[:2] == ["1", "3"]
    assert list(check_trained(IMAGES, [thing(1)], {7}, "a.json")) == []


def test_evaluation_scores_objects_of_no_area_but_no_crowds():
    (issue,) = check_evaluated(IMAGES, [thing(1, iscrowd=1)], {7}, "a.json")
    assert (issue.severity, issue.code) == ("error", "no-data") and " 1 " in issue.text
    (issue,) = check_evaluated(IMAGES, [thing(1, area=0), thing(2)], {7}, "a.json")
    assert (issue.severity, issue.code) == ("warning", "bad-annotations")
    assert re.findall(r"\d+", issue.text)[:2] == ["1", "2"]
    (issue,) = check_evaluated(IMAGES, [], {7}, "a.json")
    assert (issue.severity, issue.code) == ("error", "no-data") and " 3 " in issue.text


def test_mmdet_drops_what_is_counted(tmp_path):
    """The dataset itself, on rows of every kind."""
    from mmengine.registry import DATASETS, DefaultScope

    import backbones.openmmlab.detection  # noqa: F401

    changes = [{}, dict(iscrowd=1), dict(area=0), dict(bbox=[1, 2, 0.5, 20]), dict(ignore=1)]
    changes += [dict(bbox=[40, 2, 10, 20]), dict(category_id=8), dict(bbox=[-5, 2, 10, 20])]
    rows = [thing(1, **change) | dict(id=number) for number, change in enumerate(changes, 1)]
    categories = [dict(id=7, name="a"), dict(id=8, name="b")]
    path = tmp_path / "a.json"
    content = dict(images=IMAGES_OF_FILES, annotations=rows, categories=categories)
    path.write_text(json.dumps(content))
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(
            dict(type="CocoDataset", ann_file=str(path), metainfo=dict(classes=("a",)),
                 data_prefix=dict(img=""), filter_cfg=dict(filter_empty_gt=True, min_size=30),
                 pipeline=[])
        )  # fmt: skip
    kept = [each for info in dataset for each in info["instances"] if not each["ignore_flag"]]
    images, objects = check_trained(IMAGES_OF_FILES, rows, {7}, "a.json", 30, True)
    assert len(dataset) == 1 and images.text.startswith("1 of 3 images")
    assert len(kept) == 2 and objects.text.startswith("2 of 8 objects")


@pytest.fixture
def faulty(shapes, tmp_path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def refused(root: Path, name: str, change, splits=("train", "val"), **overrides) -> InputError:
    """The error that a run on this data begins with."""
    path = root / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    config = load_config(DETECTION, {key.replace("__", "."): v for key, v in overrides.items()})
    change_place(config, root)
    with pytest.raises(InputError) as caught:
        check_data(config, splits)
    assert caught.value.where == str(path)
    return caught.value


def test_a_run_stops_where_nothing_is_left(faulty):
    def crowds(content):
        for row in content["annotations"]:
            row["iscrowd"] = 1

    assert refused(faulty, TRAIN, crowds).code == "no-data"


@pytest.mark.parametrize("splits", [("train", "val"), ("test",)])
def test_an_evaluation_of_nothing_is_refused(faulty, splits):
    error = refused(faulty, VAL, lambda content: content["annotations"].clear(), splits)
    assert error.code == "no-data" and " 4 " in str(error)


def test_images_that_are_all_too_small(faulty):
    key = "train_dataloader__dataset__filter_cfg__min_size"
    error = refused(faulty, TRAIN, lambda content: None, **{key: 97})
    assert error.code == "no-data" and {"8", "97"} <= set(re.findall(r"\d+", str(error)))


def test_swapped_sizes_are_refused_before_an_evaluation(faulty):
    from PIL import Image

    for path in (faulty / "val2017").iterdir():
        Image.new("RGB", (96, 64)).save(path)

    def swap(content):
        for image in content["images"]:
            image.update(width=64, height=96)
        for row in content["annotations"]:
            row.update(bbox=[1, 1, 9, 9], area=81, segmentation=[[1, 1, 10, 1, 10, 10]])

    error = refused(faulty, VAL, swap, ("test",))
    assert error.code == "bad-annotations"
    assert all(name in str(error) for name in ("64x96", "96x64", "4 of 4"))
