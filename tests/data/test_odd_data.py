"""Every odd data set is read as the clean one, or refused in one line that names file and row.

`support/odd_data.py` has the list. What is compared is what training and evaluation get: decoded
images, boxes, labels and masks from the built data set, and AP against pycocotools' on clean data.
"""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.forked import run_forked
from support.hanging import in_time
from support.odd_data import (
    CASES,
    CLASSES,
    HEIGHT,
    ODDITIES,
    SCENES,
    WIDTH,
    Thing,
    clean_coco,
    drafted,
    drawing,
    encoded,
    label_map,
)
from support.running import DETECTION, SEGMENTATION, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.doctor.checks import check_data

SECONDS = 20
LOADING = {
    "mmdet": [
        dict(type="LoadImage"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    ],
    "mmseg": [dict(type="LoadImage"), dict(type="LoadAnnotations", reduce_zero_label=False)],
}


@cache
def config_of(path: Path) -> Config:
    return load_config(path)


def used(form: str, root: Path, work_dir: Path) -> Config:
    """The config after --data and the checks that a run begins with."""
    config = deepcopy(config_of(SEGMENTATION if form == "maps" else DETECTION))
    with in_time(SECONDS):
        use_data(config, root, work_dir)
        check_data(config, ("train", "val", "test"))
    return config


def built(config: Config, split: str, with_mask: bool):
    """A split's data set, which loads and does nothing more."""
    dataset = deepcopy(config[f"{split}_dataloader"].dataset)
    dataset.serialize_data = False  # it collects garbage, which takes longer than the rest
    dataset.pipeline = deepcopy(LOADING[config.default_scope])
    if config.default_scope == "mmdet":
        dataset.pipeline[1]["with_mask"] = with_mask
    else:
        dataset.pipeline[1]["reduce_zero_label"] = dataset.reduce_zero_label
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return DATASETS.build(dataset)


def scene_of(path: str, split: str) -> tuple[str, str]:
    return split, Path(path).name[0].lower()


def check_things(loaded: dict, key: tuple[str, str], classes: tuple, with_mask: bool) -> None:
    """The boxes, labels and masks of an image are the scene's."""
    boxes = loaded["gt_bboxes"].tensor.numpy()
    names = [classes[label] for label in loaded["gt_bboxes_labels"]]
    order = np.lexsort(boxes.T)
    things = sorted(SCENES[key], key=lambda t: (t.box[1] + t.box[3], t.box[0] + t.box[2]))
    order = sorted(order, key=lambda i: (boxes[i][3].round(), boxes[i][2].round()))
    assert [names[i] for i in order] == [CLASSES[thing.label] for thing in things]
    assert not loaded["gt_ignore_flags"].any()
    for i, thing in zip(order, things, strict=True):
        x, y, w, h = thing.box
        np.testing.assert_allclose(boxes[i], [x, y, x + w, y + h], atol=2e-3)
        if with_mask:
            np.testing.assert_array_equal(loaded["gt_masks"].masks[i], thing.mask)


@pytest.mark.parametrize("name, form", CASES, ids=[f"{form}-{name}" for name, form in CASES])
def test_reading(name, form, tmp_path):
    root = drafted(name, form).write(tmp_path / "own")
    oddity = ODDITIES.get(name)
    if oddity and oddity.code:
        with pytest.raises(InputError) as caught:
            config = used(form, root, tmp_path / "work")
            if oddity.code == "bad-image":  # which --skip-bad-images may go without
                dataset = built(config, "train", form in ("coco", "yolo"))
                _ = [dataset[i] for i in range(len(dataset))]
        assert caught.value.code == oddity.code, caught.value
        assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()
        for word in oddity.words:
            assert word in str(caught.value), caught.value
        return
    config = used(form, root, tmp_path / "work")
    with_mask = form in ("coco", "yolo")
    for split in ("train", "val"):
        dataset = built(config, split, with_mask)
        keys = []
        for i in range(len(dataset)):
            loaded = dataset[i]
            key = scene_of(loaded["img_path"], split)
            keys.append(key)
            assert loaded["img"].shape == (HEIGHT, WIDTH, 3)
            # Some formats lose detail; a turned image would be off by more than 40.
            error = np.abs(loaded["img"][..., ::-1].astype(int) - drawing(key)).mean()
            assert error < 8, error
            if form == "maps":
                expected = label_map(key)
                if name == "a_label_map_of_ignored_pixels" and key == ("train", "b"):
                    expected = np.full_like(expected, 255)
                np.testing.assert_array_equal(loaded["gt_seg_map"], expected)
            else:
                check_things(loaded, key, dataset.metainfo["classes"], with_mask)
        assert sorted(keys) == sorted(key for key in SCENES if key[0] == split)
    if form == "maps":
        assert len(dataset.metainfo["classes"]) == 3
    elif name == "clean" or (form == "coco" and not oddity.on_images):
        assert ap(config, dataset, with_mask) == pytest.approx(clean_ap(with_mask), abs=6e-4)


def guesses(key: tuple[str, str]) -> list[tuple[Thing, float]]:
    """What a fair detector might find in a scene: moved boxes, wrong classes, and nothing."""
    rng = np.random.default_rng(ord(key[1]))
    found = []
    for thing in SCENES[key]:
        x, y, w, h = thing.box
        moved = (x + int(rng.integers(-2, 3)), y + int(rng.integers(-2, 3)), w, h)
        found.append((Thing(thing.label, moved), float(rng.random())))
        found.append((Thing(1 - thing.label, thing.box), float(rng.random()) / 2))
    return [*found, (Thing(0, (1, 1, 10, 10)), 0.3)]


@cache
def clean_ap(with_mask: bool) -> dict[str, float]:
    """pycocotools' AP and AP50 of the guesses on clean data."""
    content = clean_coco("val")
    if not with_mask:
        for row in content["annotations"]:
            row["area"] = row["bbox"][2] * row["bbox"][3]
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    rows = []
    for image in content["images"]:
        for thing, score in guesses(("val", image["file_name"][0])):
            row = dict(image_id=image["id"], category_id=thing.label + 1, score=score)
            rows.append(row | dict(bbox=list(thing.box)))
    figures = {}
    for kind in ("bbox", "segm")[: 1 + with_mask]:
        if kind == "segm":
            each = (thing for key in SCENES if key[0] == "val" for thing, _ in guesses(key))
            for row, thing in zip(rows, each, strict=True):
                del row["bbox"]
                row["segmentation"] = [thing.polygon]
        found = truth.loadRes(deepcopy(rows)) if kind == "bbox" else _masks(truth, rows)
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures[f"coco/{kind}_mAP"], figures[f"coco/{kind}_mAP_50"] = evaluation.stats[:2]
    assert all(0.2 < value < 1 for value in figures.values()), figures
    return figures


def _masks(truth: COCO, rows: list[dict]) -> COCO:
    from pycocotools import mask as coco_mask

    for row in rows:
        codes = coco_mask.frPyObjects(row["segmentation"], HEIGHT, WIDTH)
        row["segmentation"] = coco_mask.merge(codes)
    return truth.loadRes(rows)


def ap(config: Config, dataset, with_mask: bool) -> dict[str, float]:
    """The config's own evaluator on the guesses about the validation split's data set."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    classes = dataset.metainfo["classes"]
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        found = guesses(scene_of(info["img_path"], "val"))
        boxes = torch.tensor([thing.box for thing, _ in found]).float()
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([score for _, score in found]),
            labels=torch.tensor([classes.index(CLASSES[thing.label]) for thing, _ in found]),
        )
        if with_mask:
            instances["masks"] = torch.tensor(np.stack([t.mask for t, _ in found])).bool()
        sample = dict(img_id=info["img_id"], ori_shape=(HEIGHT, WIDTH), pred_instances=instances)
        with in_time(SECONDS):
            metric.process({}, [sample])
    with in_time(SECONDS):
        figures = metric.evaluate(len(dataset))
    wanted = clean_ap(with_mask)
    assert any("segm" in key for key in figures) == with_mask
    return {key: figures[key] for key in wanted}


def test_there_are_many():
    assert len(CASES) >= 250
    assert sum(ODDITIES[name].code is not None for name, _ in CASES if name in ODDITIES) >= 60


class TestOwnAnnotationFiles:
    """What a config names by itself is converted nowhere: refused, with the way out."""

    def config(self, root: Path, work_dir: Path, change) -> Config:
        """The saved config of clean data whose validation file is then changed."""
        draft = drafted("clean", "coco").write(root)
        config = used("coco", draft, work_dir)
        path = root / "annotations" / "instances_val.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return config

    CHANGES = {
        "text ids": lambda c: [r.update(id=f"a{r['id']}") for r in c["annotations"]],
        "ids from 0": lambda c: [r.update(id=r["id"] - 1) for r in c["annotations"]],
        "ids twice": lambda c: [r.update(id=1) for r in c["annotations"]],
        "text image ids": lambda c: [
            *(r.update(image_id=str(r["image_id"])) for r in c["annotations"]),
            *(r.update(id=str(r["id"])) for r in c["images"]),
        ],
        "references of another kind": lambda c: [
            r.update(image_id=str(r["image_id"])) for r in c["annotations"]
        ],
        "run lengths": lambda c: c["annotations"][0].update(
            segmentation=dict(size=[HEIGHT, WIDTH], counts=[5, 5])
        ),
        "two points": lambda c: c["annotations"][0].update(segmentation=[[1, 1, 9, 9]]),
        "not nested": lambda c: c["annotations"][0].update(
            segmentation=c["annotations"][0]["segmentation"][0]
        ),
        "swapped": lambda c: [i.update(width=HEIGHT, height=WIDTH) for i in c["images"]],
        "crowds": lambda c: [r.update(iscrowd=1) for r in c["annotations"]],
        "nothing": lambda c: c["annotations"].clear(),
    }

    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.parametrize("splits", [("train", "val"), ("test",)], ids=["train", "test"])
    def test_refused(self, name, splits, tmp_path):
        config = self.config(tmp_path / "own", tmp_path / "work", self.CHANGES[name])
        with pytest.raises(InputError) as caught, in_time(SECONDS):
            check_data(config, splits)
        code = "no-data" if name in ("crowds", "nothing") else "bad-annotations"
        assert caught.value.code == code
        assert "instances_val.json" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    def test_read_again_with_the_flag(self, tmp_path):
        config = self.config(tmp_path / "own", tmp_path / "work", self.CHANGES["text image ids"])
        use_data(config, tmp_path / "own", tmp_path / "work")
        check_data(config, ("train", "val", "test"))
        assert ap(config, built(config, "val", True), True) == pytest.approx(
            clean_ap(True), abs=6e-4
        )

    def test_the_configs_own_layout_is_repaired_too(self, tmp_path):
        """Names and places are the config's; ids are not sound, so it is read as any data."""
        root = drafted("clean", "coco").write(tmp_path / "own")
        config = deepcopy(config_of(DETECTION))
        for split, file in (("train", "train"), ("val", "val"), ("test", "val")):
            dataset = config[f"{split}_dataloader"].dataset
            dataset.ann_file = f"annotations/instances_{file}.json"
            dataset.data_prefix = dict(img=f"{file}/")
            dataset.metainfo = dict(classes=CLASSES)
        moved = deepcopy(config)
        use_data(moved, root, tmp_path / "work")
        assert moved.val_dataloader.dataset.ann_file == "annotations/instances_val.json"
        path = root / "annotations" / "instances_val.json"
        content = json.loads(path.read_text())
        self.CHANGES["ids from 0"](content)
        path.write_text(json.dumps(content))
        use_data(config, root, tmp_path / "work")
        check_data(config, ("train", "val", "test"))
        rows = json.loads(Path(config.val_dataloader.dataset.ann_file).read_text())["annotations"]
        assert [row["id"] for row in rows] == [1, 2, 3, 4, 5]
        assert ap(config, built(config, "val", True), True) == pytest.approx(
            clean_ap(True), abs=6e-4
        )


def test_outlines_without_area_are_not_scored(tmp_path):
    draft = drafted("clean", "coco")
    draft.rows("val")[0]["segmentation"] = [[1, 1, 20, 20]]
    config = used("coco", draft.write(tmp_path / "own"), tmp_path / "work")
    loaded = built(config, "val", True)[0]
    assert loaded["gt_ignore_flags"].tolist() == [True, False]
    assert all(value > 0 for value in ap(config, built(config, "val", True), True).values())
    content = json.loads(Path(config.val_dataloader.dataset.ann_file).read_text())
    assert [row["iscrowd"] for row in content["annotations"]] == [1, 0, 0, 0, 0]


def test_images_that_filter_cfg_drops(tmp_path):
    root = drafted("clean", "coco").write(tmp_path / "own")
    config = deepcopy(config_of(DETECTION))
    config.train_dataloader.dataset.filter_cfg = dict(min_size=49, filter_empty_gt=True)
    use_data(config, root, tmp_path / "work")
    with pytest.raises(InputError) as caught:
        check_data(config, ("train",))
    assert caught.value.code == "no-data"
    for word in ("instances_train.json", "3", "49", "min_size"):
        assert word in str(caught.value)
    config.train_dataloader.dataset.filter_cfg.min_size = 48
    check_data(config, ("train",))


class TestConfigsOwnFolderNames:
    """ADE20K's folder names without a list of classes."""

    def read(self, values: list[int], tmp_path: Path) -> Config:
        draft = drafted("clean", "maps")
        del draft.files["classes.txt"]
        for key in SCENES:
            labels = np.array(values, np.uint8)[label_map(key)]
            draft.files[f"{draft.maps(key[0])}/{key[1]}.png"] = encoded(labels, "PNG")
        return used("maps", draft.write(tmp_path / "own"), tmp_path / "work")

    def test_labels_of_the_config(self, tmp_path):
        config = self.read([0, 1, 8], tmp_path)
        assert config.train_dataloader.dataset.type == "BaseSegDataset"
        assert config.model.decode_head.num_classes == 8

    def test_a_mask_of_one_thing(self, tmp_path):
        config = self.read([0, 255, 255], tmp_path)
        dataset = config.train_dataloader.dataset
        assert list(dataset.metainfo.classes) == ["background", "foreground"]
        loaded = built(config, "val", False)[0]
        key = scene_of(loaded["img_path"], "val")
        np.testing.assert_array_equal(loaded["gt_seg_map"], label_map(key) > 0)

    @pytest.mark.parametrize("values", [[0, 127, 255], [0, 9, 255], [5, 9, 7], [0, 128, 128]])
    def test_values_that_leave_gaps(self, values, tmp_path):
        with pytest.raises(InputError) as caught:
            self.read(values, tmp_path)
        assert caught.value.code == "bad-labels" and "classes.json" in str(caught.value)


def test_folders_of_classes(tmp_path):
    """Hidden files and folders, suffixes in capitals, links and a loop of them."""
    from backbones.openmmlab.classification.folders import ClassFolders

    pixels = encoded(drawing(("train", "a")), "JPEG")
    for name in ("red/a.JPG", "red/._a.JPG", "red/Thumbs.db", "__MACOSX/red/a.jpg", ".x/a.jpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pixels if "._" not in name else b"\0\5\x16\7")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(pixels)
    (tmp_path / "train" / "blue").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "red" / "again").symlink_to("..")
    with in_time(SECONDS):
        found = ClassFolders(str(tmp_path), split="train", pipeline=[dict(type="LoadRGB")])
    assert found.metainfo["classes"] == ("blue", "red")
    direct = [(Path(path).name, label) for path, label in found.samples if "again" not in path]
    assert direct == [("b.png", 0), ("a.JPG", 1)]
    assert found[0]["img"].size == (WIDTH, HEIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, form",
    [("ids_of_images_text", "coco"), ("no_boxes", "coco"), ("everything_linked", "yolo"),
     ("xml_in_gbk", "voc"), ("a_label_map_of_ignored_pixels", "maps"), ("macos_files", "maps")],
)  # fmt: skip
def test_trained_on(name, form, tmp_path):
    root = drafted(name, form).write(tmp_path / "own")
    config = SEGMENTATION if form == "maps" else DETECTION
    length = ["train_cfg.max_epochs=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2"]
    if form == "maps":
        length[:2] = ["train_cfg.max_iters=3", "train_cfg.val_interval=3"]
    workers = [f"{split}_dataloader.num_workers=0" for split in ("train", "val")]
    workers += [f"{split}_dataloader.persistent_workers=False" for split in ("train", "val")]
    outcome = run_forked(
        "train.py", config, "--data", root, "--work-dir", tmp_path / "run", "--cfg-options",
        *length, *workers, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err[-2000:]
    assert list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize(
    "name, form",
    [("run_lengths_cut", "coco"), ("all_crowds", "coco"), ("yaml_in_latin_1", "yolo"),
     ("xml_cut_off", "voc"), ("values_of_0_127_and_255", "maps")],
)  # fmt: skip
def test_refused_by_the_tool(name, form, tmp_path):
    root = drafted(name, form).write(tmp_path / "own")
    config = SEGMENTATION if form == "maps" else DETECTION
    outcome = run_here("train.py", config, "--data", root, "--work-dir", tmp_path / "run")
    assert_error(outcome, ODDITIES[name].code, *ODDITIES[name].words)
