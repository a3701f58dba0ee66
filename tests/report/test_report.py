"""Reports: figures against oracles, pages that hold together, commands that work when pasted."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.forked import run_forked
from support.running import DETECTION, REPOSITORY, SEGMENTATION, assert_error, command, run_here

from backbones import InputError
from backbones.openmmlab import detection, segmentation  # noqa: F401
from backbones.openmmlab.config import load_config
from backbones.openmmlab.detection.coco_ap import CocoAP
from backbones.openmmlab.detection.figures import DetectionFigures, detection_figures, match
from backbones.openmmlab.evaluation.figures import Worst, as_data_url
from backbones.openmmlab.report import compare, render
from backbones.openmmlab.report.charts import Series, line_chart, number
from backbones.openmmlab.report.comparison import config_differences, score_table
from backbones.openmmlab.report.curves import Curves
from backbones.openmmlab.report.experiment import describe_config, flatten
from backbones.openmmlab.report.metrics import Metrics
from backbones.openmmlab.report.saved import jsonable, named_runs, read_report
from backbones.openmmlab.segmentation.boundary import BoundaryIoU
from backbones.openmmlab.segmentation.figures import SegmentationFigures, segmentation_figures
from backbones.openmmlab.tasks import task_of_scope

DETECTION_TASK = task_of_scope("mmdet")
HOSTILE = '<script>alert("x")</script>'
CHROMIUM = shutil.which("chromium")
# Headless and on its own: nothing of it goes to a network.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=3000",
)  # fmt: skip


class TestCurves:
    @pytest.mark.parametrize("count", [1, 7, 63, 64, 100, 1000])
    def test_points_are_means_of_their_stride(self, count):
        curves = Curves(points=64)
        values = np.random.default_rng(0).normal(size=count)
        for i, value in enumerate(values):
            curves.add(i + 1, dict(loss=value))
        assert len(curves.steps) < 64 or curves.stride == 1
        whole = len(curves.steps) * curves.stride
        assert count - whole < curves.stride
        expected = values[:whole].reshape(-1, curves.stride).mean(1)
        np.testing.assert_allclose(curves.values["loss"], expected, rtol=0, atol=1e-12)
        assert curves.steps == list(range(curves.stride, whole + 1, curves.stride))

    def test_names_that_come_late_and_values_that_are_not_finite(self):
        curves = Curves()
        curves.add(1, dict(a=1.0))
        curves.add(2, dict(a=float("nan"), b=2.0))
        curves.add(3, dict(b=float("inf")))
        assert curves.values == dict(a=[1.0, None, None], b=[None, 2.0, None])

    def test_resumed_from_the_middle(self):
        first, again = Curves(), Curves()
        for step in range(1, 11):
            first.add(step, dict(loss=step))
        again.restore(json.loads(json.dumps(first.state())), 6)
        for step in range(7, 11):
            again.add(step, dict(loss=step))
        assert again.state() == first.state()


def coco_set(seed: int, images: int = 12, classes: int = 3) -> tuple[COCO, list[dict]]:
    """Random objects, crowds among them, and detections near and far; category ids unsorted."""
    rng = np.random.default_rng(seed)
    ids = [7, 2, 5][:classes]
    annotations, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            x, y = rng.uniform(0, 150, 2)
            w, h = rng.uniform(5, 120, 2)
            category = int(rng.choice(ids))
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=image, category_id=category,
                    bbox=[x, y, w, h], area=w * h, iscrowd=0,
                )
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                dx, dy, dw, dh = rng.normal(0, 0.12, 4) * [w, h, w, h]
                found.append(
                    dict(
                        image_id=image, bbox=[x + dx, y + dy, w + dw, h + dh],
                        category_id=category if rng.random() < 0.8 else int(rng.choice(ids)),
                        score=float(rng.uniform(0.05, 1)),
                    )
                )  # fmt: skip
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=i, width=300, height=300) for i in range(images)],
        categories=[dict(id=k, name=f"class {k}") for k in ids],
        annotations=annotations,
    )
    truth.createIndex()
    return truth, found


def coco_metric(truth: COCO, folder: Path, asked: list[str]) -> CocoAP:
    path = folder / "truth.json"
    path.write_text(json.dumps(truth.dataset))
    metric = CocoAP(str(path), metric="bbox")
    metric.dataset_meta = dict(classes=asked)
    return metric


def detection_samples(truth: COCO, found: list[dict], names: list[str]) -> list:
    """mmdet's data samples of COCO detections."""
    from mmdet.structures import DetDataSample

    labels = {row["id"]: names.index(row["name"]) for row in truth.dataset["categories"]}
    samples = []
    for image in truth.dataset["images"]:
        rows = [row for row in found if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = DetDataSample(
            metainfo=dict(
                img_id=image["id"], img_path=f"none/{image['id']}.jpg", ori_shape=(300, 300)
            )
        )
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            scores=torch.tensor([row["score"] for row in rows]),
            labels=torch.tensor([labels[row["category_id"]] for row in rows], dtype=torch.long),
        )
        samples.append(sample)
    return samples


class TestDetection:
    NAMES = ["class 7", "class 2", "class 5"]  # the annotation file's order, as mmdet's labels
    ASKED = ["class 5", "class 7", "class 2"]

    @pytest.mark.parametrize("seed", range(3))
    def test_right_ones_are_cocos_true_positives(self, seed, tmp_path):
        truth, found = coco_set(seed)
        figures = DetectionFigures(self.ASKED, coco_metric(truth, tmp_path, self.ASKED), 0)
        for sample in detection_samples(truth, found, self.NAMES):
            figures.add(sample)
        kept = [row for row in found if row["score"] >= 0.3]
        oracle = COCOeval(truth, truth.loadRes([dict(row) for row in kept]), "bbox")
        oracle.params.iouThrs = np.array([0.5])
        oracle.evaluate()
        for category in truth.dataset["categories"]:
            label = self.NAMES.index(category["name"])
            expected = sum(
                int((image["dtMatches"][0] > 0).sum())
                for image in oracle.evalImgs
                if image and image["category_id"] == category["id"]
                and image["aRng"] == oracle.params.areaRng[0]
            )  # fmt: skip
            assert expected > 1
            assert figures.confusion[label, label] == expected
        # Every object and every detection is counted once.
        objects = len(truth.dataset["annotations"])
        assert sum(n for (i, _), n in figures.confusion.items() if i < 3) == objects
        assert sum(n for (_, j), n in figures.confusion.items() if j < 3) == len(kept)
        assert sum(n for (i, j), n in figures.confusion.items() if i != j and max(i, j) < 3) > 0

    def test_scores_by_class_and_size_are_pycocotools(self, tmp_path):
        truth, found = coco_set(5, images=40)
        oracle = COCOeval(truth, truth.loadRes([dict(row) for row in found]), "bbox")
        oracle.params.maxDets = [1, 10, 1000]  # mmdet's AP is over 1000 detections, not 100
        oracle.evaluate()
        oracle.accumulate()
        metric = coco_metric(truth, tmp_path, self.ASKED)
        figures = detection_figures([metric], metric.dataset_meta, 0)
        for sample in detection_samples(truth, found, self.NAMES):
            metric.process({}, [sample.to_dict()])
            figures.add(sample)
        scores = metric.evaluate(len(truth.imgs))
        result = figures.to_dict()
        assert result["kinds"] == dict(bbox="box")
        sizes = result["sizes"]["bbox"]
        precision = oracle.eval["precision"][..., -1]
        for a, (name, key) in enumerate(
            zip(("all", "small", "medium", "large"), ("", "_s", "_m", "_l"), strict=True)
        ):
            values = precision[..., a]
            assert sizes[name] == pytest.approx(values[values > -1].mean(), abs=1e-12)
            assert scores[f"coco/bbox_mAP{key}"] == pytest.approx(sizes[name], abs=5.1e-4)
        assert 0.1 < sizes["all"] < 0.9
        for k, category in enumerate(sorted(truth.cats)):
            row = result["per_class"][self.NAMES.index(truth.cats[category]["name"])]
            of_class = precision[:, :, k, 0]
            assert row["bbox"]["AP"] == pytest.approx(of_class.mean(), abs=1e-12)
            assert row["bbox"]["AP50"] == pytest.approx(of_class[0].mean(), abs=1e-12)
            assert row["bbox"]["AP75"] == pytest.approx(of_class[5].mean(), abs=1e-12)
            label = self.NAMES.index(row["name"])
            curve = dict(map(tuple, result["precision_recall"]["bbox"]["classes"]))[label]
            np.testing.assert_allclose(curve, of_class[0], rtol=0, atol=6e-5)
            assert row["objects"] == len(truth.getAnnIds(catIds=[category]))

    def test_own_class_before_a_better_overlap_of_another(self):
        truth = np.array([[0, 0, 10, 10], [0, 1, 10, 11]], dtype=float)
        boxes = truth[[1, 1, 0]]
        pairs = match(
            boxes, np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7]), truth, np.array([0, 1])
        )
        # The first takes the object of its class, the third that of its own; one is left over.
        assert pairs.tolist() == [0, -1, 1]

    def test_detections_on_a_crowd_are_left_out(self, tmp_path):
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=0, width=300, height=300)],
            categories=[dict(id=1, name="person")],
            annotations=[
                dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 99, 99], area=1, iscrowd=1)
            ],
        )
        truth.createIndex()
        found = [
            dict(image_id=0, category_id=1, bbox=[10, 10, 20, 20], score=0.9),
            dict(image_id=0, category_id=1, bbox=[200, 200, 20, 20], score=0.9),
        ]
        metric = coco_metric(truth, tmp_path, ["person"])
        (sample,) = detection_samples(truth, found, ["person"])
        for _ in range(2):  # evaluating must not change what the next evaluation finds
            figures = DetectionFigures(["person"], metric, 0)
            figures.add(sample)
            assert dict(figures.confusion) == {(1, 0): 1}
            metric.process({}, [sample.to_dict()])
            metric.evaluate(1)

    def test_no_objects_and_no_detections(self, tmp_path):
        truth, _ = coco_set(0)
        truth.dataset["annotations"] = []
        metric = coco_metric(truth, tmp_path, self.ASKED)
        figures = DetectionFigures(self.ASKED, metric, 4)
        for sample in detection_samples(truth, [], self.NAMES):
            figures.add(sample)
            metric.process({}, [sample.to_dict()])
        metric.evaluate(12)
        result = figures.to_dict()
        assert result["images"] == 12 and result["confusion"] == []
        assert np.isnan(result["sizes"]["bbox"]["all"])
        layout = asdict(DETECTION_TASK.report_layout)
        assert "class 5" in render(jsonable(dict(version=1, layout=layout, evaluation=result)))

    def test_what_has_figures(self, tmp_path):
        """mmdet's own metrics have confusions too; nothing else has."""
        from mmdet.evaluation.metrics import CocoMetric, DumpDetResults

        truth, found = coco_set(1)
        path = coco_metric(truth, tmp_path, self.ASKED)._file
        dump = DumpDetResults(out_file_path=str(tmp_path / "found.pkl"))
        meta = dict(classes=self.ASKED)
        figures = detection_figures([dump, CocoMetric(path)], meta, 0)
        for sample in detection_samples(truth, found, self.NAMES):
            figures.add(sample)
        assert figures.to_dict()["confusion"] and figures.to_dict()["sizes"] == {}
        assert detection_figures([dump], meta, 0) is None
        assert detection_figures([CocoMetric(path)], {}, 0) is None
        assert detection_figures([CocoMetric()], meta, 0) is None
        written = CocoMetric(path, format_only=True, outfile_prefix=str(tmp_path / "x"))
        assert detection_figures([written], meta, 0) is None


class TestSegmentation:
    def test_iou_by_class_is_mmsegs(self):
        from mmseg.evaluation.metrics import IoUMetric
        from mmseg.structures import SegDataSample

        rng = np.random.default_rng(0)
        classes = [f"class {i}" for i in range(5)]
        figures = SegmentationFigures(classes, None, 255, 0)
        areas = []
        for image in range(6):
            truth = torch.tensor(rng.choice([0, 1, 2, 3, 255], (1, 40, 30)))  # nothing of class 4
            wrong = torch.tensor(rng.random((1, 40, 30)) < 0.4)
            predicted = torch.where(wrong, torch.tensor(rng.integers(0, 4, (1, 40, 30))), truth)
            predicted[predicted == 255] = 0
            sample = SegDataSample(metainfo=dict(img_path=f"none/{image}.png"))
            sample.gt_sem_seg = PixelData(data=truth)
            sample.pred_sem_seg = PixelData(data=predicted)
            figures.add(sample)
            areas.append(IoUMetric.intersect_and_union(predicted[0], truth[0], 5, 255))
        totals = [sum(column) for column in zip(*areas, strict=True)]
        expected = IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU", "mFscore"])
        rows = figures.to_dict()["per_class"]
        for key, name in (("IoU", "IoU"), ("Acc", "recall"), ("Precision", "precision")):
            mine = [row[name] for row in rows]
            np.testing.assert_allclose(mine, expected[key], rtol=1e-6)
        assert np.isnan(rows[4]["IoU"]) and 0.2 < rows[0]["IoU"] < 0.9

    def test_boundaries_by_class_are_its_own_metrics(self):
        from mmseg.evaluation.metrics import IoUMetric
        from mmseg.structures import SegDataSample

        boundary, meta = BoundaryIoU(), dict(classes=["a", "b"], palette=[[1, 2, 3], [4, 5, 6]])
        boundary.dataset_meta = meta
        figures = segmentation_figures([IoUMetric(), boundary], meta, 0)
        truth = torch.zeros(1, 40, 40, dtype=torch.long)
        truth[:, 10:30, 10:30] = 1
        sample = SegDataSample(metainfo=dict(img_path="none.png"))
        sample.gt_sem_seg = PixelData(data=truth)
        sample.pred_sem_seg = PixelData(data=truth.roll(2, 2))
        figures.add(sample)
        boundary.process({}, [sample.to_dict()])
        boundary.evaluate(1)
        result = figures.to_dict()
        values = [row["boundary IoU"] for row in result["per_class"]]
        assert values == boundary.boundary_iou and 0.1 < values[1] < 0.9
        assert result["colours"] == ["#010203", "#040506"]
        assert segmentation_figures([boundary], meta, 0) is None

    def test_two_processes_make_one(self):
        one, two, both = (SegmentationFigures(["a", "b"], None, 255, 2) for _ in range(3))
        from mmseg.structures import SegDataSample

        for i in range(6):
            truth = torch.zeros(1, 8, 8, dtype=torch.long)
            predicted = (torch.arange(64).reshape(1, 8, 8) < 10 * i).long()
            sample = SegDataSample(metainfo=dict(img_path=f"{i}.png"))
            sample.gt_sem_seg, sample.pred_sem_seg = (
                PixelData(data=truth),
                PixelData(data=predicted),
            )
            both.add(sample)
            (one, two)[i % 2].add(sample)
        one.merge(two.state())
        assert (one.confusion == both.confusion).all() and one.images == both.images == 6
        assert [row[1] for row in one.worst] == [row[1] for row in both.worst] == ["5.png", "4.png"]


def test_the_worst_are_kept_and_sorted():
    scores = np.random.default_rng(0).permutation(100) / 100
    worst = Worst(7)
    for i, score in enumerate(scores):
        worst.add(float(score), "same name", dict(i=i))
    assert [score for score, *_ in worst] == sorted(scores)[:7]
    assert not Worst(0).takes(-1.0)


def test_what_a_config_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f'"""My claim: <b>99</b>."""\n_base_ = [{str(SEGMENTATION)!r}]\n'
        "model = dict(backbone=dict(drop_path_rate=0.3))\ntrain_cfg = dict(max_iters=7)\n"
    )
    config = load_config(path, {"optim_wrapper.optimizer.lr": 0.5})
    config.work_dir = "elsewhere"
    described = describe_config(config)
    assert described["claim"] == "My claim: <b>99</b>."
    changes = {row["key"]: (row["base"], row["value"]) for row in described["changes"]}
    assert changes == {
        "model.backbone.drop_path_rate": (None, "0.3"),
        "train_cfg.max_iters": (str(load_config(SEGMENTATION).train_cfg.max_iters), "7"),
        "optim_wrapper.optimizer.lr": ("0.0015", "0.5"),
    }
    # A recipe of several bases: what it says of the network is there.
    described = describe_config(load_config(DETECTION))
    changes = {row["key"]: row["value"] for row in described["changes"]}
    assert changes["model.backbone.arch"] == "'atto'"
    assert changes["model.roi_head.bbox_head.2.num_classes"] == "4"
    assert "train_cfg.max_epochs" not in changes
    assert flatten(dict(a=[1, 2], b=[dict(c=(1,))])) == {"a": "[1, 2]", "b.0.c": "[1]"}


def picture(seed: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    return as_data_url(Image.fromarray(cv2.resize(noise, (360, 240))))


def made_up_report(seed: int = 0, name: str = "run", classes: int = 12, evil: str = "") -> dict:
    """A report with everything in it; `evil` is put into every name."""
    rng = np.random.default_rng(seed)
    names = [f"{evil}class {i}" for i in range(classes)]
    steps = list(range(2, 802, 2))
    falling = (3 * np.exp(-np.array(steps) / 200) + 0.4 + rng.normal(0, 0.1, 400)).tolist()
    falling[7] = None
    losses = {n: falling for n in ("loss", "loss_rpn_cls", "s0.loss_cls", "s1.loss_cls")}
    rates = {
        f"lr/{evil}layer {i}": (np.linspace(1e-4, 0, 400) * 0.7**i).tolist() for i in range(13)
    }
    kinds = {
        kind: {k: float(rng.random()) for k in ("AP", "AP50", "AP75", "AP small", "AP medium")}
        for kind in ("bbox", "segm")
    }
    curve = np.linspace(1, 0, 101).tolist()
    confusion = [
        [i, j, int(rng.integers(1, 90))] for i in range(classes + 1) for j in range(classes)
    ]
    return dict(
        version=1,
        task="detection",
        layout=asdict(DETECTION_TASK.report_layout),
        metrics=[
            *(asdict(metric) for metric in DETECTION_TASK.metrics),
            dict(key=f"{evil}other", name=f"{evil}another", best=1.0, main=True),
        ],
        run=dict(name=name + evil, folder=f"/somewhere/{evil}"),
        training=dict(
            curves=dict(stride=2, steps=steps, values={**losses, **rates, "time": falling}),
            scores=[
                dict(step=s, figures={"coco/bbox_mAP": s / 1600, "coco/segm_mAP": s / 2000})
                for s in (200, 400, 600, 800)
            ],
            iterations=800, max_iterations=800, epochs=8, max_epochs=8, seconds=5000.0,
            batch_size=16, images_per_second=31.2, peak_memory_mib=9000, seed=3, processes=1,
            seconds_per_iteration=0.51, parameters=86_000_000,
        ),
        evaluation=dict(
            split="validation", step=800, images=5000, seconds=12.0,
            scores={"coco/bbox_mAP": 0.5 + seed / 100, f"{evil}other": 1.0}, classes=names,
            data=evil, kinds=dict(bbox=f"{evil}box", segm="mask"),
            per_class=[dict(name=n, objects=9, **kinds) for n in names],
            sizes={k: dict(all=0.5, small=0.3, medium=None, large=0.7) for k in ("bbox", "segm")},
            precision_recall=dict(
                bbox=dict(mean={"IoU 0.50": curve}, classes=[[i, curve] for i in range(classes)])
            ),
            confusion=confusion,
            pictures=[
                dict(file=f"{evil}{i}.jpg", score=i / 9, note=evil or "2 of 5 objects found",
                     truth=picture(i), prediction=picture(i + 1))
                for i in range(6)
            ],
        ),
        config=dict(
            claim=f"{evil}Cascade Mask R-CNN.", text=f"_base_ = 1\n{evil}", has_bases=True,
            changes=[
                dict(key=f"model.{evil}a", base=None, value=evil),
                dict(key="train_dataloader.dataset.pipeline." + 8 * "transforms.", base="1",
                     value=repr(list(range(60)))),
            ],
            resolved={"seed": str(seed), evil: evil},
        ),
        environment={"torch": "2.11.0", evil: evil},
        commands=[dict(what="Evaluate", command="python tools/test.py " + 20 * "long/" + evil)],
    )  # fmt: skip


class Reader(HTMLParser):
    """Elements and attributes of a page, and whether they are closed in order."""

    VOID = {"meta", "img"}

    def __init__(self, page: str):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "evil", [HOSTILE, '" onload="x', "</title></style><img src=//x>", "'><svg onload=x>\n&amp;"]
)
@pytest.mark.parametrize("classes", [3, 80])
def test_names_of_strangers_stay_text(evil, classes):
    report = made_up_report(evil=evil, classes=classes)
    pages = [render(report), compare({evil + "a": report, "b": made_up_report(1)})]
    report["layout"] = asdict(task_of_scope("mmseg").report_layout)
    report["evaluation"]["sizes"] = {}
    for row in report["evaluation"]["per_class"]:
        row.update(IoU=0.5, recall=0.5, precision=None, pixels=0.1)
    pages.append(render(report))
    for page in pages:
        reader = Reader(page)
        assert evil.strip() in reader.text
        for tag, attributes in reader.found:
            assert tag not in ("script", "link", "iframe", "object", "base", "form"), tag
            assert not any(name.startswith("on") for name in attributes), attributes
            for name in ("src", "href"):
                assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
        assert "url(" not in page and "@import" not in page
        assert "default-src 'none'" in page


def test_an_image_address_that_is_none_is_left_out():
    report = made_up_report()
    report["evaluation"]["pictures"][0]["truth"] = "https://elsewhere.example/x.png"
    assert "elsewhere.example" not in render(report)


def test_pages_have_the_figures():
    text = Reader(render(made_up_report())).text
    for shown in ("1 h 23 min", "8 of 8 epochs", "8.8 GiB", "86.0 M", "box AP", "mask AP small"):
        assert shown in text, shown
    for title in ("Losses: s1", "Losses: rpn"):  # by what the names of the losses begin with
        assert title in text, title
    page = compare(dict(a=made_up_report(0), b=made_up_report(3)))
    text = Reader(page).text
    assert "0.530" in text and "seed" in text and "Box AP by iteration" in text
    assert config_differences([made_up_report(0), made_up_report(3)]) == [["seed", "0", "3"]]
    # An empty report is a page too.
    for report in ({}, dict(training={}), dict(evaluation=dict(scores={}))):
        Reader(render(report))
        Reader(compare(dict(a=report, b=report)))


@pytest.mark.parametrize(
    "scope, scores", [("mmdet", ["0.812", "0.312"]), ("mmseg", ["81.2", "31.2", "6.25"])]
)
def test_a_page_is_laid_out_by_the_record_of_the_task(scope, scores):
    layout = task_of_scope(scope).report_layout
    report = {**made_up_report(classes=2), "layout": asdict(layout)}
    report["evaluation"]["sizes"] = {}
    for i, row in enumerate(report["evaluation"]["per_class"]):
        row.update(AP=0.8124 - i / 2, IoU=0.8124 - i / 2, precision=None, pixels=0.0625)
    text = Reader(render(report)).text
    for shown in (*scores, layout.class_count, layout.image_score, layout.image_note):
        assert shown in text, shown
    assert text.index(scores[1]) < text.index(scores[0])  # the worst class first


def test_main_metrics_come_first():
    report = made_up_report()
    report["evaluation"]["scores"] = {
        "coco/bbox_mAP_s": 0.1, "coco/segm_mAP_50": 0.2, "mine": 0.3, "coco/segm_mAP": 0.4,
        "coco/bbox_mAP": 0.5, "coco/bbox_mAP_l": -1.0,
    }  # fmt: skip
    keys = [key for key, _ in score_table([report, report])]
    assert keys[:2] == ["coco/bbox_mAP", "coco/segm_mAP"] and len(keys) == 5  # -1: no such object
    found = Reader(render(report)).found
    assert [dict(a).get("class") for tag, a in found if tag == "dl"] == ["tiles"]
    # What an earlier version wrote has neither layout nor metrics: keys stand in for names.
    for key in ("layout", "metrics"):
        del report[key]
    report["evaluation"].update(kinds=None)
    for text in (Reader(render(report)).text, Reader(compare(dict(a=report, b=report))).text):
        assert "coco/segm_mAP" in text and "mask AP" not in text
    assert score_table([report])[0] == ("coco/bbox_mAP_s", [0.1])


def test_pages_need_no_openmmlab_library(tmp_path):
    """Nor does the tool: what a metric is called stands in report.json."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(made_up_report(0, name)))
    code = (
        "import sys; from backbones.openmmlab.report import compare, render; "
        "from backbones.openmmlab.report.saved import read_report; "
        "runs = {name: read_report(name) for name in 'ab'}; "
        "assert 'box AP' in render(runs['a']) and 'box AP' in compare(runs); "
        "print(*{'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_config_that_inherits_from_a_library(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '_base_ = "mmdet::_base_/models/faster-rcnn_r50_fpn.py"\n'
        "model = dict(roi_head=dict(bbox_head=dict(num_classes=7)))\n"
    )
    described = describe_config(Config.fromfile(path))
    changes = {row["key"]: (row["base"], row["value"]) for row in described["changes"]}
    assert changes == {"model.roi_head.bbox_head.num_classes": ("80", "7")}
    assert described["resolved"]["model.backbone.depth"] == "50"
    # Bases that are computed are not guessed at.
    path.write_text(f"_base_ = [str({str(SEGMENTATION)!r})]\n")
    assert describe_config(Config.fromfile(path))["changes"] == []


def test_headings_keep_the_spelling_of_names():
    report = dict(metrics=[asdict(metric) for metric in task_of_scope("mmseg").metrics])
    assert Metrics([report]).title("mIoU") == "mIoU"
    assert Metrics([made_up_report()]).title("coco/bbox_mAP") == "Box AP"
    assert Metrics([{}]).title("some/key") == "Some/key"


def test_a_hostile_config_stays_text(tmp_path):
    path = tmp_path / "<script>alert(1)<!--.py"
    path.write_text(
        f'"""{HOSTILE} Claim."""\n_base_ = {str(SEGMENTATION)!r}\nnote = {HOSTILE!r}\n'
        f"model = dict(backbone=dict(drop_path_rate=0.3))  # </pre>{HOSTILE}\n"
    )
    described = jsonable(describe_config(Config.fromfile(path)))
    changes = {row["key"]: row["value"] for row in described["changes"]}
    assert changes == {"note": repr(HOSTILE), "model.backbone.drop_path_rate": "0.3"}
    page = render(dict(version=1, run=dict(name=path.stem), config=described))
    reader = Reader(page)
    assert not any(tag == "script" for tag, _ in reader.found)
    assert reader.text.count(HOSTILE) >= 4 and path.stem in reader.text


def test_points_are_where_they_belong():
    chart = line_chart(
        [Series("a", [0, 5, 10, 15], [0.0, 0.5, None, 1.0])], title="t", x_label="x", y_label="y",
        y_limits=(0, 1), markers=True,
    )  # fmt: skip
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x0, y0), (x1, y1), (x3, y3) = dots
    assert (x1 - x0) / (x3 - x0) == pytest.approx(1 / 3, abs=1e-3)
    assert (y0 - y1) / (y0 - y3) == pytest.approx(1 / 2, abs=1e-3)
    assert chart.count("<polyline") == 1  # the line breaks where a value is missing
    assert line_chart([Series("a", [1], [None])], title="t", x_label="x", y_label="y") == ""
    assert [number(v) for v in (0.83124, 12345, 1e-5, None, float("nan"))] == [
        "0.8312", "12,345", "1e-05", "–", "–",
    ]  # fmt: skip


@pytest.fixture
def browser(tmp_path):
    """Loads a page at a width, in light or dark: (scrollWidth, clientWidth) and a picture."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")

    def load(page: str, width: int, dark: bool) -> tuple[int, int, np.ndarray]:
        # A frame gives widths below the least one of a window.
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<body style="margin:0"><iframe id="f" style="border:0;width:{width}px;height:900px" '
            f'srcdoc="{html.escape(page)}"></iframe><script>f.onload = () => {{'
            "const e = f.contentDocument.documentElement;"
            "document.title = `widths ${e.scrollWidth} ${e.clientWidth}`}</script>"
        )
        shot = tmp_path / "shot.png"
        options = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]
        options += [f"--window-size={max(width, 500)},900"]
        options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        for what in ("--dump-dom", f"--screenshot={shot}"):
            done = subprocess.run([*options, what, str(frame)], capture_output=True, timeout=120)
            if what == "--dump-dom":
                scroll, client = map(
                    int, re.search(r"widths (\d+) (\d+)", done.stdout.decode()).groups()
                )
        return scroll, client, np.array(Image.open(shot).convert("RGB"))

    return load


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (375, False)])
def test_no_sideways_scroll_light_and_dark(width, dark, browser):
    pages = [render(made_up_report(classes=30))]
    if width == 375:
        pages.append(compare({f"a long name of a run {i}": made_up_report(i) for i in range(5)}))
    for page in pages:
        scroll, client, shot = browser(page, width, dark)
        assert scroll <= client <= width
        paper = shot[5, 5].astype(int)
        assert (paper < 60).all() if dark else (paper > 200).all()
        assert len(np.unique(shot[:, :width].reshape(-1, 3), axis=0)) > 50


class TestTool:
    def test_compares_and_renders(self, tmp_path):
        for i, name in enumerate(("one", "two")):
            (tmp_path / name).mkdir()
            text = json.dumps(made_up_report(i, name))
            (tmp_path / name / "report.json").write_text(text)
        out = tmp_path / "both.html"
        outcome = run_here("report.py", tmp_path / "one", tmp_path / "two", "--out", out)
        assert outcome.status == 0, outcome.err
        assert "0.51" in outcome.out and "box AP" in outcome.out
        assert "one, two" in Reader(out.read_text()).text
        assert run_here("report.py", tmp_path / "one").status == 0
        assert (tmp_path / "one" / "report.html").read_text() == render(made_up_report(0, "one"))
        assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
            "report.html",
            "report.json",
        ]

    @pytest.mark.parametrize(
        "text, code",
        [
            (None, "not-found"),
            ("{", "broken-file"),
            ("[]", "broken-file"),
            ('{"version": 0}', "broken-file"),
            ('{"version": 1, "training": 3}', "broken-file"),
            ('{"version": 1, "metrics": [{"key": 3}]}', "broken-file"),
        ],
    )
    def test_mistakes_end_in_one_line(self, text, code, tmp_path):
        if text is not None:
            (tmp_path / "report.json").write_text(text)
        assert_error(run_here("report.py", tmp_path), code, "report.json")
        assert not (tmp_path / "report.html").exists()

    def test_a_folder_that_is_not_there(self, tmp_path):
        (tmp_path / "report.json").write_text(json.dumps(made_up_report()))
        outcome = run_here("report.py", tmp_path, "--out", tmp_path / "x" / "y.html")
        assert_error(outcome, "not-found", tmp_path / "x")

    def test_same_run_twice(self, tmp_path):
        (tmp_path / "report.json").write_text(json.dumps(made_up_report()))
        with pytest.raises(InputError) as caught:
            named_runs([tmp_path, tmp_path / "report.json"])
        assert (caught.value.code, caught.value.where) == ("bad-argument", str(tmp_path))
        other = tmp_path / "b" / "run"
        other.mkdir(parents=True)
        assert list(named_runs([tmp_path / "a" / "run" / "report.json", other])) == [
            "a/run",
            "b/run",
        ]
        assert read_report(tmp_path)["run"]["name"] == "run"


EPOCHS = (
    "train_cfg.max_epochs=2", "train_cfg.val_interval=1", "train_dataloader.num_workers=1",
    "model.test_cfg.rcnn.score_thr=0.001", "param_scheduler.0.start_factor=1.0",
)  # fmt: skip
ITERATIONS = (
    "train_cfg.max_iters=6", "train_cfg.val_interval=3", "train_dataloader.num_workers=1",
    "default_hooks.checkpoint.interval=3", "train_dataloader.batch_size=2",
)  # fmt: skip
HERE = (
    "randomness.seed=0",
    "default_hooks.logger.interval=1",
    *(
        f"{split}_dataloader.{key}"
        for split in ("val", "test")
        for key in ("num_workers=0", "persistent_workers=False")
    ),
)


def paste(line: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command of the report as it stands there, in a shell."""
    words = shlex.split(line)
    assert words[0] == "python"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        line, shell=True, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, options", [(DETECTION, EPOCHS), (SEGMENTATION, ITERATIONS)],
    ids=["detection", "segmentation"],
)  # fmt: skip
def test_a_run_leaves_its_report(config, options, shapes, tmp_path):
    task = config.parent.name
    steps = 4 if task == "detection" else 6
    folder = tmp_path / "a run"  # a name that has to be quoted
    arguments = (config, "--data", shapes, "--work-dir", folder, "--cfg-options")
    trained = run_forked("train.py", *arguments, *options, *HERE, cwd=tmp_path)
    assert trained.status == 0, trained.err
    report = json.loads((folder / "report.json").read_text())
    curves = report["training"]["curves"]
    assert curves["steps"] == list(range(1, steps + 1))
    # The log has the means over up to 50 or 10 iterations, here all since the start.
    logged = [float(x) for x in re.findall(r"\(train\).*? loss: ([\d.]+)", trained.out)]
    means = np.cumsum(curves["values"]["loss"]) / curves["steps"]
    assert logged == pytest.approx(means.tolist(), abs=1e-4)
    if task == "detection":
        assert [row["step"] for row in report["training"]["scores"]] == [2, 4]
    else:
        assert [row["step"] for row in report["training"]["scores"]] == [3, 6]
    scores = report["evaluation"]["scores"]
    key = "coco/bbox_mAP" if task == "detection" else "mIoU"
    printed = float(re.findall(rf"{key}: ([\d.-]+)", trained.out)[-1])
    assert scores[key] == pytest.approx(printed, abs=1e-3)
    assert report["training"]["scores"][-1]["figures"][key] == scores[key]
    per_class = report["evaluation"]["per_class"]
    if task == "detection":
        assert report["evaluation"]["sizes"]["bbox"]["all"] == pytest.approx(scores[key], abs=6e-4)
        known = [row["bbox"]["AP"] for row in per_class if row["bbox"]["AP"] is not None]
        assert np.mean(known) == pytest.approx(scores[key], abs=6e-4)
    else:
        known = [row["IoU"] for row in per_class if row["IoU"] is not None]
        assert 100 * np.mean(known) == pytest.approx(scores[key], abs=0.01)
    assert len(report["evaluation"]["pictures"]) == 4
    listed = [picture["score"] for picture in report["evaluation"]["pictures"]]
    assert listed == sorted(listed)
    Reader((folder / "report.html").read_text())
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]

    lines = {row["what"].split()[0]: row["command"] for row in report["commands"]}
    last = folder / (f"epoch_{steps // 2}.pth" if task == "detection" else f"iter_{steps}.pth")
    evaluated = paste(lines["Evaluate"], tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((folder / "report.json").read_text())
    assert again["evaluation"]["split"] == "test"
    assert tmp_path / again["evaluation"]["checkpoint"] == last
    assert again["evaluation"]["scores"][key] == pytest.approx(scores[key], abs=1e-6)
    assert again["evaluation"]["confusion"] == report["evaluation"]["confusion"]
    assert again["training"]["curves"] == curves
    assert {row["what"].split()[0]: row["command"] for row in again["commands"]} == lines
    predicted = paste(lines["Predict"], tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert len(list((folder / "predictions" / "pictures").iterdir())) == 4

    # Resumed from the middle, the curves are one.
    middle = folder / ("epoch_1.pth" if task == "detection" else "iter_3.pth")
    (folder / "last_checkpoint").write_text(str(middle))
    resumed = paste(lines["Resume"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    third = json.loads((folder / "report.json").read_text())
    assert third["training"]["curves"]["steps"] == curves["steps"]
    half = steps // 2
    for name, column in third["training"]["curves"]["values"].items():
        assert column[:half] == curves["values"][name][:half], name
    first, second = (r["training"]["scores"] for r in (report, third))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    assert first[0] == second[0]


@pytest.mark.slow
def test_an_interrupted_run_has_a_report(shapes, tmp_path):
    import signal

    options = ("train_cfg.max_iters=500", "train_cfg.val_interval=500", *ITERATIONS[2:], *HERE)
    argv = command("train.py", SEGMENTATION, "--data", shapes, "--work-dir", "run", "--cfg-options")
    process = subprocess.Popen(
        [*argv, *options], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if re.search(r"Iter\(train\) +\[ *5/", line):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["training"]["curves"]["steps"]) >= 5
    Reader((tmp_path / "run" / "report.html").read_text())
