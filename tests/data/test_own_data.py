"""One's own data with one flag: every layout gives the same model, labels, scores and rerun."""

import json
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from support.forked import run_forked
from support.running import DETECTION, REPOSITORY, SEGMENTATION, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.annotations import read_annotations
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.doctor.checks import check_data
from backbones.weights import read_checkpoint

NAMES = ["circle", "square", "triangle", "star"]


def content(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


def outline(mask: np.ndarray) -> np.ndarray:
    """(n, 2) corners of one polygon around a mask, its parts joined by seams of no width."""
    large = cv2.resize(mask, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = [((c[:, 0] + 0.5) / 8).round() for c in contours if len(c) > 2]
    return np.concatenate([np.concatenate([p, p[:1], parts[0][:1]]) for p in parts])


def outlines(row: dict) -> np.ndarray:
    return outline(coco_mask.decode(row["segmentation"]))


def write_roboflow(shapes: Path, root: Path) -> Path:
    """train/_annotations.coco.json beside its images, a group of classes as category 0."""
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(shapes / f"{split}2017", root / folder)
        data = content(shapes, split)
        data["categories"].insert(0, dict(id=0, name="shapes", supercategory="none"))
        for category in data["categories"][1:]:
            category["supercategory"] = "shapes"
        (root / folder / "_annotations.coco.json").write_text(json.dumps(data))
    return root


def write_single_json(shapes: Path, root: Path) -> Path:
    """One JSON for all images, and no split."""
    (root / "images").mkdir(parents=True)
    whole: dict = dict(images=[], annotations=[])
    for first, split in ((0, "train"), (1000, "val")):
        part = content(shapes, split)
        for image in part["images"]:
            name = f"{split}_{image['file_name']}"
            shutil.copy(shapes / f"{split}2017" / image["file_name"], root / "images" / name)
            whole["images"].append({**image, "id": first + image["id"], "file_name": name})
        for row in part["annotations"]:
            ids = dict(id=first + row["id"], image_id=first + row["image_id"])
            whole["annotations"].append({**row, **ids})
    whole["categories"] = part["categories"]
    (root / "objects.json").write_text(json.dumps(whole))
    return root


def write_yolo(shapes: Path, root: Path, masks: bool = True) -> Path:
    """data.yaml, images and labels; polygons, or boxes."""
    for split in ("train", "val"):
        data = content(shapes, split)
        shutil.copytree(shapes / f"{split}2017", root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        label = {c["id"]: i for i, c in enumerate(data["categories"])}
        for image in data["images"]:
            size, lines = np.array([image["width"], image["height"]]), []
            for row in data["annotations"]:
                if row["image_id"] == image["id"]:
                    x, y, w, h = row["bbox"]
                    box = np.array([[x + w / 2, y + h / 2], [w, h]])
                    numbers = ((outlines(row) if masks else box) / size).ravel()
                    lines.append(f"{label[row['category_id']]} {' '.join(map(str, numbers))}")
            name = Path(image["file_name"]).with_suffix(".txt")
            (root / "labels" / split / name).write_text("\n".join(lines) + "\n")
    names = [category["name"] for category in data["categories"]]
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return root


def write_voc(shapes: Path, root: Path, difficult: bool = False) -> Path:
    """Annotations, JPEGImages and ImageSets/Main; pixels count from 1 to the last one inside."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        data = content(shapes, split)
        names = {category["id"]: category["name"] for category in data["categories"]}
        for image in data["images"]:
            tree = ElementTree.Element("annotation")
            ElementTree.SubElement(tree, "filename").text = image["file_name"]
            for row in data["annotations"]:
                if row["image_id"] == image["id"]:
                    element = ElementTree.SubElement(tree, "object")
                    ElementTree.SubElement(element, "name").text = names[row["category_id"]]
                    flag = int(difficult and names[row["category_id"]] == "star")
                    ElementTree.SubElement(element, "difficult").text = str(flag)
                    box = ElementTree.SubElement(element, "bndbox")
                    x, y, w, h = row["bbox"]
                    for key, number in dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h).items():
                        ElementTree.SubElement(box, key).text = str(round(number))
            stem = f"{split}_{Path(image['file_name']).stem}"
            shutil.copy(
                shapes / f"{split}2017" / image["file_name"], root / "JPEGImages" / f"{stem}.jpg"
            )
            tree.find("filename").text = f"{stem}.jpg"
            ElementTree.ElementTree(tree).write(root / "Annotations" / f"{stem}.xml")
            with (root / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
                file.write(f"{stem}\n")
    return root


WRITERS = dict(
    roboflow=write_roboflow,
    yolo=write_yolo,
    yolo_boxes=lambda shapes, root: write_yolo(shapes, root, masks=False),
    voc=write_voc,
)


def used(config: Path, root: Path, work_dir: Path, checkpoint: Path | None = None):
    """The config after --data."""
    read = load_config(config)
    use_data(read, root, work_dir, checkpoint and read_checkpoint(checkpoint))
    check_data(read, ("test",) if checkpoint else ("train", "val", "test"))
    return read


def scores(config, guesses: dict[str, dict]) -> dict[str, float]:
    """The config's own dataset and evaluator on guesses by the name of their image."""
    from mmengine.registry import DATASETS, METRICS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(config.val_dataloader.dataset)
        metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        guess = guesses[re.sub("^val_", "", Path(info["img_path"]).name)]
        labels = torch.tensor([dataset.metainfo["classes"].index(n) for n in guess["names"]])
        found = dict(bboxes=guess["boxes"], scores=guess["scores"], labels=labels)
        if "segm" in metric.metrics:
            found["masks"] = guess["masks"]
        size = (info["height"], info["width"])
        metric.process({}, [dict(img_id=info["img_id"], ori_shape=size, pred_instances=found)])
    return metric.evaluate(len(dataset))


@pytest.fixture(scope="module")
def guesses(shapes) -> dict[str, dict]:
    """Moved boxes and masks, one in eight of a wrong class: what a fair detector might find."""
    data, rng = content(shapes, "val"), np.random.default_rng(0)
    name_of = {category["id"]: category["name"] for category in data["categories"]}
    found = {}
    for image in data["images"]:
        rows = [r for r in data["annotations"] if r["image_id"] == image["id"]]
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in rows)])
        masks = np.stack([coco_mask.decode(r["segmentation"]) for r in rows])
        steps = rng.integers(-3, 4, (len(rows), 2))
        moved = [np.roll(m, s[::-1], (0, 1)) for m, s in zip(masks, steps, strict=True)]
        found[image["file_name"]] = dict(
            boxes=torch.tensor(boxes + np.tile(steps, 2) + rng.normal(0, 0.5, boxes.shape)),
            masks=torch.tensor(np.stack(moved)).bool(),
            scores=torch.tensor(rng.random(len(rows))),
            names=[
                name_of[r["category_id"]] if rng.random() < 0.87 else rng.choice(NAMES)
                for r in rows
            ],
        )
    return found


@pytest.fixture(scope="module")
def reference(shapes, guesses, tmp_path_factory) -> dict[str, float]:
    """Scores on the folder that the config names, which only changes places."""
    config = used(DETECTION, shapes, tmp_path_factory.mktemp("work"))
    assert config.val_dataloader.dataset.ann_file == "annotations/instances_val2017.json"
    return scores(config, guesses)


class TestDetectionFormats:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_same_scores(self, kind, shapes, guesses, reference, tmp_path):
        config = used(DETECTION, WRITERS[kind](shapes, tmp_path / "own"), tmp_path / "work")
        figures = scores(config, guesses)
        assert 0.2 < reference["coco/bbox_mAP"] < 0.8
        assert 0.2 < reference["coco/segm_mAP"] < 0.8
        masks = kind in ("roboflow", "yolo")
        for key in ("mAP", "mAP_50", "mAP_75"):
            got, want = figures[f"coco/bbox_{key}"], reference[f"coco/bbox_{key}"]
            assert got == pytest.approx(want, abs=1e-6), key
            if masks:
                got, want = figures[f"coco/segm_{key}"], reference[f"coco/segm_{key}"]
                assert got == pytest.approx(want, abs=0.02 if kind == "yolo" else 1e-6), key
        assert any("segm" in key for key in figures) == masks
        assert bool(config.model.roi_head.mask_head) == masks
        steps = [s for s in config.train_dataloader.dataset.pipeline if "Annot" in s["type"]]
        assert [step["with_mask"] for step in steps] == [masks]

    @pytest.mark.parametrize("kind", ["roboflow", "yolo", "voc"])
    def test_boxes_are_the_original(self, kind, shapes, tmp_path):
        _, read = read_annotations(WRITERS[kind](shapes, tmp_path))
        for split in ("train", "val"):
            truth, found = content(shapes, split), read[split].content
            assert len(found["images"]) == len(truth["images"])
            names = {c["id"]: c["name"] for c in truth["categories"]}
            got_names = {c["id"]: c["name"] for c in found["categories"]}
            wanted = [(names[r["category_id"]], *r["bbox"]) for r in truth["annotations"]]
            got = [(got_names[r["category_id"]], *r["bbox"]) for r in found["annotations"]]
            assert [row[0] for row in got] == [row[0] for row in wanted]
            tolerance = 2e-3 if kind == "yolo" else 0
            np.testing.assert_allclose(
                [row[1:] for row in got], [row[1:] for row in wanted], atol=tolerance
            )
            if kind == "yolo":
                for row, true in zip(found["annotations"], truth["annotations"], strict=True):
                    image = next(i for i in found["images"] if i["id"] == row["image_id"])
                    size = image["height"], image["width"]
                    code = coco_mask.merge(coco_mask.frPyObjects(row["segmentation"], *size))
                    overlap = coco_mask.iou([code], [true["segmentation"]], [0]).item()
                    assert overlap > 0.9, row
                    assert row["iscrowd"] == 0

    def test_difficult_objects_are_neither_learnt_nor_missed(self, shapes, guesses, tmp_path):
        root = write_voc(shapes, tmp_path / "own", difficult=True)
        config = used(DETECTION, root, tmp_path / "work")
        data = json.loads(Path(config.val_dataloader.dataset.ann_file).read_text())
        name = {c["id"]: c["name"] for c in data["categories"]}
        flags = {(name[r["category_id"]] == "star", r["iscrowd"]) for r in data["annotations"]}
        assert flags == {(True, 1), (False, 0)}
        without = {
            image: {**guess, **_only(guess, [n != "star" for n in guess["names"]])}
            for image, guess in guesses.items()
        }
        one, two = scores(config, guesses), scores(config, without)
        # A star found or missed changes nothing but where it was called something else.
        assert one["coco/bbox_mAP"] == pytest.approx(two["coco/bbox_mAP"], abs=1e-6) != 0

    def test_voc_counted_from_zero(self, shapes, tmp_path):
        root = write_voc(shapes, tmp_path)
        path = sorted((root / "Annotations").iterdir())[0]
        text = re.sub(r"<xmin>\d+<", "<xmin>0<", path.read_text(), count=1)
        path.write_text(text)
        first = read_annotations(root)[1]["train"].content["annotations"][0]
        written = [int(x) for x in re.findall(r"<[xy]m\w\w>(\d+)<", text)[:4]]
        x, y, w, h = first["bbox"]
        assert [x, y, x + w, y + h] == written

    def test_category_order_is_the_models(self, shapes, guesses, reference, tmp_path):
        """mmdet numbers labels by the file's order: the file is brought into the config's."""
        root = Path(shutil.copytree(shapes, tmp_path / "own"))
        for split in ("train", "val"):
            data = content(shapes, split)
            data["categories"].reverse()
            path = root / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(data))
        config = used(DETECTION, root, tmp_path / "work")
        assert config.train_dataloader.dataset.metainfo.classes == tuple(NAMES)
        assert scores(config, guesses) == pytest.approx(reference, abs=1e-9)
        from mmengine.registry import DATASETS, DefaultScope

        with DefaultScope.overwrite_default_scope("mmdet"):
            dataset = DATASETS.build(config.val_dataloader.dataset)
        names = {c["id"]: c["name"] for c in data["categories"]}
        truth = [names[r["category_id"]] for r in data["annotations"]]
        labels = [
            i["bbox_label"]
            for n in range(len(dataset))
            for i in dataset.get_data_info(n)["instances"]
        ]
        assert sorted(NAMES[label] for label in labels) == sorted(truth)

    def test_without_supervision(self, shapes, tmp_path):
        root = write_yolo(shapes, tmp_path / "own")
        hidden = {name: None for name in sys.modules if name.split(".")[0] == "supervision"}
        with patch.dict(sys.modules, {"supervision": None, **hidden}):
            outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "missing-package", "convnext-dense-prediction[convert]")

    def test_labelled_test_split_is_what_is_evaluated(self, shapes, tmp_path):
        root = write_roboflow(shapes, tmp_path / "own")
        shutil.copytree(root / "valid", root / "test")
        path = root / "test" / "_annotations.coco.json"
        data = json.loads(path.read_text())
        data["images"] = data["images"][:2]
        kept = {image["id"] for image in data["images"]}
        data["annotations"] = [r for r in data["annotations"] if r["image_id"] in kept]
        path.write_text(json.dumps(data))
        config = used(DETECTION, root, tmp_path / "work")
        for split, count in (("train", 8), ("val", 4), ("test", 2)):
            dataset = config[f"{split}_dataloader"].dataset
            assert len(json.loads(Path(dataset.ann_file).read_text())["images"]) == count
            if split != "train":
                assert config[f"{split}_evaluator"].ann_file == dataset.ann_file

    @pytest.mark.parametrize("name", ["cascade_convnext_atto_demo.py", "mask_rcnn_convnext_t.py"])
    def test_model_without_masks(self, name, shapes, tmp_path):
        from mmengine.registry import MODELS, DefaultScope

        root = write_voc(shapes, tmp_path / "own")
        config = used(DETECTION.parent / name, root, tmp_path / "work")
        config.model.backbone.pop("init_cfg", None)
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(config.model)
        assert model.with_bbox and not model.with_mask
        assert config.val_evaluator.metric == config.test_evaluator.metric == ["bbox"]

    def test_some_masks_missing(self, shapes, tmp_path):
        root = write_roboflow(shapes, tmp_path / "own")
        path = root / "valid" / "_annotations.coco.json"
        data = json.loads(path.read_text())
        data["annotations"][3]["segmentation"] = []
        path.write_text(json.dumps(data))
        outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "bad-annotations", "_annotations.coco.json", "annotation 4", ".jpg")

    @pytest.mark.parametrize(
        "line, words",
        [("7 0.5 0.5 0.1 0.1", ["line 1", "class 7", "4 names"]), ("1 0.5 0.5", [])],
    )
    def test_broken_yolo_line(self, line, words, shapes, tmp_path):
        root = write_yolo(shapes, tmp_path / "own")
        path = sorted((root / "labels" / "val").iterdir())[0]
        path.write_text(line)
        outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "bad-annotations", path.name, *words)

    def test_unknown_class_in_validation(self, shapes, tmp_path):
        root = write_roboflow(shapes, tmp_path / "own")
        path = root / "valid" / "_annotations.coco.json"
        path.write_text(path.read_text().replace('"star"', '"hexagon"'))
        outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "class-mismatch", "valid", "hexagon", "train/_annotations.coco.json")

    def test_missing_image(self, shapes, tmp_path):
        root = write_roboflow(shapes, tmp_path / "own")
        sorted((root / "train").glob("*.jpg"))[2].unlink()
        outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "bad-image", "000000000003.jpg", "_annotations.coco.json")

    def test_photographs(self, real_data, tmp_path):
        """COCO's own annotations, crowds and objects of many parts, as a folder of one's own."""
        root = tmp_path / "own"
        for split, name in (("train", "train"), ("val", "valid")):
            data = content(real_data / "coco_mini", split)
            kept = {c["id"] for c in data["categories"] if c["name"] in ("person", "car", "dog")}
            data["categories"] = [c for c in data["categories"] if c["id"] in kept]
            data["annotations"] = [r for r in data["annotations"] if r["category_id"] in kept]
            shutil.copytree(real_data / "coco_mini" / f"{split}2017", root / name)
            (root / name / "_annotations.coco.json").write_text(json.dumps(data))
        config = used(DETECTION.parent / "cascade_convnext_t.py", root, tmp_path / "work")
        heads = config.model.roi_head
        assert [h.num_classes for h in heads.bbox_head] == [3, 3, 3]
        assert heads.mask_head.num_classes == 3
        assert "num_classes" not in config.model.rpn_head
        dataset = config.train_dataloader.dataset
        assert dataset.metainfo.classes == ("person", "car", "dog")
        assert len(dataset.metainfo.palette) == 3
        assert config.val_evaluator.ann_file.endswith("valid/_annotations.coco.json")
        trained = tmp_path / "80.pth"
        classes = load_config(DETECTION.parent / "cascade_convnext_t.py")
        from backbones.openmmlab.data.metainfo import dataset_metainfo

        classes = dataset_metainfo(classes.val_dataloader.dataset, "mmdet")["classes"]
        torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=classes))), trained)
        config = used(DETECTION.parent / "cascade_convnext_t.py", root, tmp_path / "work", trained)
        assert config.model.roi_head.mask_head.num_classes == 80
        data = json.loads(Path(config.test_dataloader.dataset.ann_file).read_text())
        assert [c["name"] for c in data["categories"]] == list(classes)


def _only(guess: dict, keep: list[bool]) -> dict:
    flags = torch.tensor(keep)
    names = [name for name, kept in zip(guess["names"], keep, strict=True) if kept]
    return {k: guess[k][flags] for k in ("boxes", "masks", "scores")} | dict(names=names)


class TestMadeSplit:
    def test_same_every_time_and_recorded(self, shapes, tmp_path):
        root = write_single_json(shapes, tmp_path / "own")
        files = []
        for name in ("one", "two"):
            config = used(DETECTION, root, tmp_path / name)
            path = Path(config.val_dataloader.dataset.ann_file)
            assert path.is_relative_to(tmp_path / name)
            files.append([p.read_bytes() for p in sorted(path.parent.iterdir())])
        assert files[0] == files[1] and len(files[0]) == 3
        split = json.loads((path.parent / "split.json").read_text())
        assert (len(split["train"]), len(split["val"])) == (9, 3)
        assert not set(split["train"]) & set(split["val"])
        data = json.loads(path.read_text())
        assert {f"images/{image['file_name']}" for image in data["images"]} == set(split["val"])
        ids = {image["id"] for image in data["images"]}
        assert {row["image_id"] for row in data["annotations"]} == ids
        # The evaluation of a checkpoint on the same folder is on the same images.
        checkpoint = tmp_path / "x.pth"
        meta = dict(dataset_meta=dict(classes=NAMES))
        torch.save(dict(state_dict=dict(x=torch.zeros(1)), meta=meta), checkpoint)
        again = used(DETECTION, root, tmp_path / "three", checkpoint)
        assert Path(again.test_dataloader.dataset.ann_file).read_bytes() == path.read_bytes()

    def test_copies_stay_together(self, shapes, tmp_path):
        """Copies under other names and Roboflow's augmentations of one picture."""
        images, labels = tmp_path / "own" / "images", tmp_path / "own" / "masks"
        images.mkdir(parents=True)
        labels.mkdir()
        originals = sorted((shapes / "images" / "training").iterdir())
        for number, path in enumerate(originals):
            label = shapes / "annotations" / "training" / f"{path.stem}.png"
            for name in (f"a{number}", f"z{number}"):
                shutil.copy(path, images / f"{name}.jpg")
                shutil.copy(label, labels / f"{name}.png")
            turned = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            Image.open(path).save(images / f"m{number}.rf.0a1b.png")
            turned.save(images / f"m{number}.rf.2c3d.png")
            for tag in ("0a1b", "2c3d"):
                shutil.copy(label, labels / f"m{number}.rf.{tag}.png")
        used(SEGMENTATION, tmp_path / "own", tmp_path / "work")
        (record,) = (tmp_path / "work").glob("data/*/split.json")
        split = json.loads(record.read_text())
        groups = [{_source(name) for name in split[s]} for s in ("train", "val")]
        assert not groups[0] & groups[1]
        assert 0.2 * 32 <= len(split["val"]) <= 10 and len(split["train"] + split["val"]) == 32

    def test_images_that_begin_alike(self, tmp_path):
        """Frames of one camera in BMP share size and first 64 KiB; copies share everything."""
        for number in range(10):
            (tmp_path / "own" / "images").mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / "masks").mkdir(exist_ok=True)
            pixels = np.zeros((160, 160, 3), np.uint8)
            pixels[0, 0] = number // 2  # a BMP's last row comes first; each image has a copy
            Image.fromarray(pixels).save(tmp_path / "own" / "images" / f"{number}.bmp")
            labels = np.arange(160 * 160, dtype=np.uint8).reshape(160, 160) % 2
            Image.fromarray(labels).save(tmp_path / "own" / "masks" / f"{number}.png")
        used(SEGMENTATION, tmp_path / "own", tmp_path / "work")
        (record,) = (tmp_path / "work").glob("data/*/split.json")
        split = json.loads(record.read_text())
        groups = [{int(Path(name).stem) // 2 for name in split[s]} for s in ("train", "val")]
        assert not groups[0] & groups[1]
        assert (len(split["train"]), len(split["val"])) == (8, 2)

    def test_too_few(self, shapes, tmp_path):
        for folder, source in (("images", "images/training"), ("masks", "annotations/training")):
            (tmp_path / "own" / folder).mkdir(parents=True)
            path = sorted((shapes / source).iterdir())[0]
            shutil.copy(path, tmp_path / "own" / folder / path.name)
        outcome = run_here("train.py", SEGMENTATION, "--data", tmp_path / "own")
        assert_error(outcome, "no-data", "1 images")


def _source(name: str) -> str:
    """a3.jpg and z3.jpg are copies of one picture, m3.rf.* two versions of another."""
    kind = "version" if ".rf." in name else "copy"
    return f"{kind} {Path(name).name[1]}"


def write_label_maps(root: Path, maps: dict[str, np.ndarray], mode: str | None = None) -> Path:
    """images/{train,val} and masks/{train,val}, the same maps in both."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for name, labels in maps.items():
            picture = rng.integers(0, 255, (*labels.shape[:2], 3), np.uint8)
            Image.fromarray(picture).save(root / "images" / split / f"{name}.jpg")
            image = Image.fromarray(labels)
            if mode == "P":
                image.putpalette(np.random.default_rng(1).integers(0, 255, 768, np.uint8).tobytes())
            image.save(root / "masks" / split / f"{name}.png")
    return root


def loaded(config, index: int = 0) -> np.ndarray:
    """The label map that the loss would see, without augmentation."""
    from mmengine.registry import DATASETS, DefaultScope

    dataset = config.val_dataloader.dataset.copy()
    dataset["pipeline"] = [s for s in dataset["pipeline"] if s["type"] != "Resize"]
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = DATASETS.build(dataset)
        return built[index]["data_samples"].gt_sem_seg.data[0].numpy()


BLOCKS = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((16, 16), np.uint8))


class TestLabelMaps:
    @pytest.mark.parametrize(
        "classes, values, want, names",
        [
            # No list: a class for every value.
            (None, [0, 1, 2, 3, 255, 5], [0, 1, 2, 3, 255, 5], [f"label {i}" for i in range(6)]),
            # As many values as names, from 0 on.
            ("classes.txt:a,b,c,d,e,f", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], list("abcdef")),
            # One value more: 0 belongs to no class.
            ("classes.txt:a,b,c,d,e", [0, 1, 2, 3, 255, 5], [255, 0, 1, 2, 255, 4], list("abcde")),
            # Named as nothing.
            ("classes.txt:void,a,b,c", [0, 1, 2, 3, 3, 255], [255, 0, 1, 2, 2, 255], list("abc")),
            ("classes.txt:a,b,Void", [0, 1, 2, 2, 0, 1], [0, 1, 255, 255, 0, 1], list("ab")),
            # Masks of one thing.
            (None, [0, 255, 0, 0, 255, 0], [0, 1, 0, 0, 1, 0], ["background", "foreground"]),
            ("classes.txt:crack", [0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0], ["background", "crack"]),
            ("classes.txt:crack", [0, 255, 0, 0, 255, 0], [0, 1, 0, 0, 1, 0],
             ["background", "crack"]),
            # Values said by the file, with gaps.
            ('classes.json:{"7": "a", "11": "b", "0": "void"}', [0, 7, 11, 11, 7, 255],
             [255, 0, 1, 1, 0, 255], ["a", "b"]),
            ('classes.json:{"a": 1, "b": 2}', [0, 1, 2, 2, 1, 255], [255, 0, 1, 1, 0, 255],
             ["a", "b"]),
            ('classes.json:["a", "b"]', [0, 1, 0, 1, 1, 255], [0, 1, 0, 1, 1, 255], ["a", "b"]),
            ("_classes.csv:Pixel Value, Class\n0, back\n1, a\n", [0, 1, 0, 1, 1, 0],
             [0, 1, 0, 1, 1, 0], ["back", "a"]),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("mode", ["L", "P"])
    def test_values(self, mode, classes, values, want, names, tmp_path):
        table = np.array(values, np.uint8)
        root = write_label_maps(tmp_path / "own", dict(x=table[BLOCKS]), mode)
        if classes:
            file, text = classes.split(":", 1)
            text = text.replace(",", "\n") if file.endswith(".txt") else text
            (root / file).write_text(text)
        config = used(SEGMENTATION, root, tmp_path / "work")
        assert list(config.train_dataloader.dataset.metainfo.classes) == names
        assert config.model.decode_head.num_classes == len(names)
        assert config.model.auxiliary_head.num_classes == len(names)
        np.testing.assert_array_equal(loaded(config), np.array(want, np.uint8)[BLOCKS])

    PALETTES = {
        "palette.json": '{"sky": [10, 20, 30], "void": [0, 0, 0], "road": [250, 0, 7]}',
        "class_dict.csv": "name,r,g,b\nsky,10,20,30\nvoid,0,0,0\nroad,250,0,7\n",
        "labelmap.txt": "# label:color_rgb:parts:actions\nsky:10,20,30::\nvoid:0,0,0::\n"
        "road:250,0,7::\n",
    }

    @pytest.mark.parametrize("file", PALETTES)
    def test_colours(self, file, tmp_path):
        colours = np.array([[10, 20, 30], [250, 0, 7], [0, 0, 0]], np.uint8)[BLOCKS % 3]
        root = write_label_maps(tmp_path / "own", dict(x=colours))
        arguments = (SEGMENTATION, "--data", root, "--work-dir", tmp_path / "none")
        assert_error(run_here("train.py", *arguments), "bad-labels", "x.png", "palette.json")
        (root / file).write_text(self.PALETTES[file])
        config = used(SEGMENTATION, root, tmp_path / "work")
        metainfo = config.val_dataloader.dataset.metainfo
        assert metainfo.classes == ("sky", "road")
        assert metainfo.palette == [[10, 20, 30], [250, 0, 7]]
        np.testing.assert_array_equal(loaded(config), np.array([0, 1, 255], np.uint8)[BLOCKS % 3])
        colours[3, 4] = 77
        Image.fromarray(colours).save(root / "masks" / "val" / "x.png")
        outcome = run_here("train.py", *arguments)
        assert_error(outcome, "bad-labels", "val/x.png", "(77, 77, 77)", file)

    @pytest.mark.parametrize(
        "fault, code, words",
        [
            ("value", "bad-labels", ["x.png", "value 9", "3 classes"]),
            ("size", "bad-labels", ["x.png", "48 x 30", "x.jpg", "48 x 32"]),
            ("map", "bad-labels", ["x.jpg", "x.png"]),
            ("cut", "bad-image", ["x.png"]),
            ("list", "bad-labels", ["classes.json"]),
            ("twice", "bad-labels", ["classes.json", "'a'"]),
        ],
    )
    def test_faults(self, fault, code, words, tmp_path):
        root = write_label_maps(tmp_path / "own", dict(x=BLOCKS % 3, y=BLOCKS % 2))
        (root / "classes.json").write_text('["a", "b", "c"]')
        path = root / "masks" / "train" / "x.png"
        if fault == "value":
            Image.fromarray(np.where(BLOCKS == 5, 9, 0).astype(np.uint8)).save(path)
        elif fault == "size":
            Image.fromarray(BLOCKS[:30] % 3).save(path)
        elif fault == "map":
            path.unlink()
        elif fault == "cut":
            path.write_bytes(path.read_bytes()[:60])
        else:
            text = "{" if fault == "list" else '["a", "b", "a"]'
            (root / "classes.json").write_text(text)
        outcome = run_here("train.py", SEGMENTATION, "--data", root, "--work-dir", tmp_path / "w")
        assert_error(outcome, code, *words)

    LAYOUTS = {
        "{split}/images/{name}.jpg": "{split}/labels/{name}.png",
        "{split}/{name}.jpg": "{split}/{name}_mask.png",
        "images/{split}/{name}.JPG": "annotations/{split}/{name}.png",
        "JPEGImages/{name}.jpg": "SegmentationClass/{name}.png",
    }

    @pytest.mark.parametrize("image", LAYOUTS)
    def test_layouts(self, image, tmp_path):
        root = tmp_path / "own"
        for number, split in enumerate(["train", "train", "train", "valid"]):
            where = dict(split=split, name=f"x{number}")
            for pattern in (image, self.LAYOUTS[image]):
                path = root / pattern.format(**where)
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.roll(BLOCKS, number, 0) % 4
                is_image = pattern == image
                Image.fromarray(np.stack([pixels * 60] * 3, -1) if is_image else pixels).save(path)
        if "Segmentation" in self.LAYOUTS[image]:
            lists = root / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True)
            (lists / "train.txt").write_text("x0\nx1\nx2\n")
            (lists / "val.txt").write_text("x3\n")
        config = used(SEGMENTATION, root, tmp_path / "work")
        np.testing.assert_array_equal(loaded(config), np.roll(BLOCKS, 3, 0) % 4)
        lists = [Path(config[f"{s}_dataloader"].dataset.pairs) for s in ("train", "val", "test")]
        assert [len(path.read_text().splitlines()) for path in lists] == [3, 1, 1]

    def test_photographs(self, real_data, tmp_path):
        """ADE20K's own folder is as before; as one's own, with a list of classes, the same."""
        config = SEGMENTATION.parent / "upernet_convnext_t.py"
        plain = used(config, real_data / "ade_mini", tmp_path / "work")
        assert plain.val_dataloader.dataset.type == "ADE20KDataset"
        from mmseg.datasets import ADE20KDataset

        root = tmp_path / "own"
        for folder in ("images", "annotations"):
            shutil.copytree(real_data / "ade_mini" / folder / "validation", root / "val" / folder)
            shutil.copytree(real_data / "ade_mini" / folder / "training", root / "train" / folder)
        own = tuple(reversed(ADE20KDataset.METAINFO["classes"]))
        text = {name: 1 + i for i, name in enumerate(ADE20KDataset.METAINFO["classes"])}
        (root / "classes.json").write_text(json.dumps({name: text[name] for name in own}))
        read = used(config, root, tmp_path / "work")
        assert read.val_dataloader.dataset.type == "ImageLabelPairs"
        assert read.val_dataloader.dataset.reduce_zero_label is True
        assert read.val_dataloader.dataset.metainfo.classes == ADE20KDataset.METAINFO["classes"]
        np.testing.assert_array_equal(loaded(read, 3), loaded(plain, 3))


class TestTask:
    def test_segmentor_on_boxes(self, shapes, tmp_path):
        for kind, words in (("roboflow", "COCO"), ("yolo", "YOLO"), ("voc", "Pascal VOC")):
            root = WRITERS[kind](shapes, tmp_path / kind)
            outcome = run_here("train.py", SEGMENTATION, "--data", root)
            assert_error(outcome, "no-data", words, root)

    def test_detector_on_label_maps(self, tmp_path):
        root = write_label_maps(tmp_path / "own", dict(x=BLOCKS))
        outcome = run_here("train.py", DETECTION, "--data", root)
        assert_error(outcome, "no-data", root)

    def test_nothing(self, tmp_path):
        for config in (DETECTION, SEGMENTATION):
            outcome = run_here("train.py", config, "--data", tmp_path)
            assert_error(outcome, "no-data", tmp_path, "own-data.md")

    def test_model_of_other_classes(self, shapes, tmp_path):
        root = write_roboflow(shapes, tmp_path / "own")
        meta = dict(dataset_meta=dict(classes=("cat", "dog")))
        torch.save(dict(state_dict=dict(x=torch.zeros(1)), meta=meta), tmp_path / "x.pth")
        outcome = run_here("test.py", DETECTION, tmp_path / "x.pth", "--data", root)
        assert_error(outcome, "class-mismatch", "circle")


DETECTOR_LAYERS = [f"roi_head.mask_head.{i}.conv_logits" for i in range(3)]
DETECTOR_LAYERS += [f"roi_head.bbox_head.{i}.fc_{k}" for i in range(3) for k in ("cls", "reg")]


class TestFineTuning:
    @pytest.fixture
    def models(self):
        """Builds the detector or the segmentor of a config with so many classes."""
        from mmengine.registry import MODELS, DefaultScope

        def build(path: Path, classes: int, **overrides):
            config = load_config(path, overrides)
            from backbones.openmmlab.data.config_edits import set_class_count

            set_class_count(config.model, classes)
            with DefaultScope.overwrite_default_scope(config.default_scope):
                return MODELS.build(config.model)

        return build

    @pytest.mark.parametrize(
        "config, left",
        [
            (DETECTION, DETECTOR_LAYERS),
            (SEGMENTATION, ["decode_head.conv_seg", "auxiliary_head.conv_seg"]),
        ],
        ids=["detection", "segmentation"],
    )  # fmt: skip
    def test_exactly_the_class_layers_are_left(self, config, left, models):
        from backbones.openmmlab.training.fine_tuning import load_all_but_classes

        trained, model = models(config, 80), models(config, 3)
        initial = {k: v.clone() for k, v in model.state_dict().items()}
        line = load_all_but_classes(model, dict(state_dict=trained.state_dict()), "x.pth")
        named = line.split("left at their initial value: ")[1].split(", ")
        assert sorted(named) == sorted(left)
        for key, tensor in model.state_dict().items():
            if key.rpartition(".")[0] in left:
                assert torch.equal(tensor, initial[key]), key
            else:
                assert torch.equal(tensor, trained.state_dict()[key]), key
        # Other classes by the checkpoint's word, though every shape fits.
        twin = models(config, 80)
        content = dict(
            state_dict=trained.state_dict(), meta=dict(dataset_meta=dict(classes=("a", "b")))
        )
        line = load_all_but_classes(twin, content, "x.pth", ("a", "c"))
        assert sorted(line.split("initial value: ")[1].split(", ")) == sorted(left)
        line = load_all_but_classes(twin, content, "x.pth", ("a", "b"))
        assert "initial" not in line
        torch.testing.assert_close(dict(twin.state_dict()), dict(trained.state_dict()))

    def test_agnostic_boxes_are_loaded(self, models):
        from backbones.openmmlab.training.fine_tuning import class_layers

        options = {f"model.roi_head.bbox_head.{i}.reg_class_agnostic": True for i in range(3)}
        layers = class_layers(models(DETECTION, 3, **options))
        assert not [layer for layer in layers if layer.endswith("fc_reg")]
        assert len(layers) == 6

    def test_anything_else_is_an_error(self, models):
        from backbones.openmmlab.training.fine_tuning import load_all_but_classes

        trained, model = models(SEGMENTATION, 80), models(SEGMENTATION, 3)
        state = trained.state_dict()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        for broken, name in (
            ({**state, "decode_head.lateral_convs.0.conv.weight": torch.zeros(1)}, "lateral_convs"),
            ({k: v for k, v in state.items() if k != "backbone.norm2.bias"}, "norm2.bias"),
            ({**state, "decode_head.conv_segment.weight": torch.zeros(3)}, "conv_segment"),
        ):
            with pytest.raises(InputError) as caught:
                load_all_but_classes(model, dict(state_dict=broken), "x.pth")
            assert name in str(caught.value)
        torch.testing.assert_close(dict(model.state_dict()), before)


def test_saved_config_needs_no_flag(shapes, tmp_path):
    """What the run saves reads the same data by itself, and other data with the flag."""
    root = write_yolo(shapes, tmp_path / "own")
    config = used(DETECTION, root, tmp_path / "work")
    config.dump(tmp_path / "work" / "saved.py")
    saved = load_config(tmp_path / "work" / "saved.py")
    check_data(saved, ("train", "val", "test"))
    for split in ("train", "val", "test"):
        assert saved[f"{split}_dataloader"] == config[f"{split}_dataloader"]
    assert saved.model == config.model
    before = sorted((tmp_path / "work").rglob("*.json"))
    moved = used(tmp_path / "work" / "saved.py", write_roboflow(shapes, tmp_path / "b"), tmp_path)
    assert moved.val_dataloader.dataset.data_root == str(tmp_path / "b")
    assert all(path.is_file() for path in before)
    again = used(tmp_path / "work" / "saved.py", root, tmp_path / "work")
    assert again.train_dataloader.dataset.ann_file == config.train_dataloader.dataset.ann_file


QUICK = (
    "train_dataloader.num_workers=1",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "default_hooks.logger.interval=1",
    "randomness.seed=0",
    "param_scheduler.0.start_factor=1.0",
    "model.test_cfg.rcnn.score_thr=0.001",
)  # fmt: skip


@pytest.mark.slow
def test_train_rerun_fine_tune_evaluate_predict(shapes, tmp_path):
    """The tools on YOLO's polygons; the saved config alone; the same checkpoint on each format."""
    root = write_yolo(shapes, tmp_path / "own")
    short = (*QUICK, "train_cfg.max_epochs=1", "train_cfg.val_interval=1")

    def losses(text: str) -> list[str]:
        return re.findall(r"\(train\).*? loss: ([\d.]+)", text)

    first = run_forked(
        "train.py", DETECTION, "--data", root, "--work-dir", "run", "--cfg-options", *short,
        cwd=tmp_path,
    )  # fmt: skip
    assert first.status == 0, first.err[-2000:]
    assert "circle, square, triangle, star" in first.out + first.err
    saved = tmp_path / "run" / DETECTION.name
    again = run_forked("train.py", saved, "--work-dir", "again", cwd=tmp_path)
    assert again.status == 0, again.err[-2000:]
    assert losses(again.out) == losses(first.out) and len(losses(first.out)) == 2

    # Fine-tuned on other classes: box head and mask head start anew, by name.
    data = Path(shutil.copytree(write_roboflow(shapes, tmp_path / "three"), tmp_path / "renamed"))
    for path in data.glob("*/_annotations.coco.json"):
        path.write_text(path.read_text().replace('"name": "star"', '"name": "circle"'))
    checkpoint = tmp_path / "run" / "epoch_1.pth"
    tuned = run_forked(
        "train.py", DETECTION, "--data", data, "--init-from", checkpoint, "--work-dir", "tuned",
        "--cfg-options", *short, cwd=tmp_path,
    )  # fmt: skip
    assert tuned.status == 0, tuned.err[-2000:]
    assert "roi_head.bbox_head.0.fc_cls" in tuned.out
    assert "circle, square, triangle" in tuned.out + tuned.err

    boxes = write_voc(shapes, tmp_path / "voc")
    trained = run_forked(
        "train.py", DETECTION, "--data", boxes, "--work-dir", "boxes", "--cfg-options", *short,
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.status == 0, trained.err[-2000:]
    saved_boxes = tmp_path / "boxes" / DETECTION.name
    written = saved_boxes.read_bytes()
    tested = run_forked(
        "test.py", saved_boxes, tmp_path / "boxes" / "epoch_1.pth", "--work-dir", "boxes",
        cwd=tmp_path,
    )  # fmt: skip
    assert tested.status == 0, tested.err[-2000:]
    assert saved_boxes.read_bytes() == written
    metrics = json.loads((tmp_path / "boxes" / "metrics.json").read_text())
    assert "coco/bbox_mAP" in metrics and "coco/segm_mAP" not in metrics

    predicted = run_forked(
        "predict.py", saved, checkpoint, root / "images" / "val", "--out", "drawn", cwd=tmp_path
    )
    assert predicted.status == 0, predicted.err[-2000:]
    assert len(list((tmp_path / "drawn" / "pictures").iterdir())) == 4


@pytest.mark.slow
def test_one_checkpoint_on_each_format(shapes, tmp_path):
    """A detector that has learnt its images by heart: the same scores by tools/test.py."""
    picture = tmp_path / "shapes"
    shutil.copytree(shapes, picture)
    for split in ("train", "val"):
        data = content(shapes, "train")
        data["images"] = data["images"][:4]
        shutil.rmtree(picture / f"{split}2017")
        (picture / f"{split}2017").mkdir()  # without the others, which YOLO's layout would count
        for image in data["images"]:
            shutil.copy(shapes / "train2017" / image["file_name"], picture / f"{split}2017")
        keep = {image["id"] for image in data["images"]}
        data["annotations"] = [r for r in data["annotations"] if r["image_id"] in keep]
        path = picture / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(data))
    options = (
        *QUICK,
        "train_cfg.max_epochs=150",
        "train_cfg.val_interval=150",
        "param_scheduler.1.end=150",
        "param_scheduler.1.T_max=150",
        "default_hooks.checkpoint.interval=150",
        "train_dataloader.dataset.pipeline.2.prob=0.0",
    )
    trained = run_forked(
        "train.py", DETECTION, "--data", picture, "--work-dir", "run", "--cfg-options", *options,
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.status == 0, trained.err[-2000:]
    checkpoint = tmp_path / "run" / "epoch_150.pth"
    found = {}
    for kind in ("coco", *WRITERS):
        root = picture if kind == "coco" else WRITERS[kind](picture, tmp_path / kind)
        outcome = run_forked(
            "test.py", DETECTION, checkpoint, "--data", root, "--work-dir", f"test_{kind}",
            "--cfg-options", "test_dataloader.num_workers=0",
            "test_dataloader.persistent_workers=False", cwd=tmp_path,
        )  # fmt: skip
        assert outcome.status == 0, outcome.err[-2000:]
        found[kind] = json.loads((tmp_path / f"test_{kind}" / "metrics.json").read_text())
    print(found)
    assert found["coco"]["coco/bbox_mAP"] > 0.1 and found["coco"]["coco/segm_mAP"] > 0.1
    for kind, tolerance in (
        ("roboflow", 1e-3),
        ("yolo", 0.02),
        ("yolo_boxes", 1e-3),
        ("voc", 1e-3),
    ):
        for key in ("coco/bbox_mAP", "coco/segm_mAP"):
            if key in found[kind]:
                assert found[kind][key] == pytest.approx(found["coco"][key], abs=tolerance), kind
        assert ("coco/segm_mAP" in found[kind]) == (kind in ("roboflow", "yolo"))


def test_documented_layouts_are_the_tested_ones():
    text = (REPOSITORY / "docs" / "own-data.md").read_text()
    for word in ("_annotations.coco.json", "data.yaml", "JPEGImages", "palette.json", "split.json"):
        assert word in text
