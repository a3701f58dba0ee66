"""Corrupted images, boundaries of masks, and the tool that measures both."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from support.forked import run_forked
from support.running import DETECTION, SEGMENTATION, assert_error, run_here

from backbones import InputError
from backbones.openmmlab import detection, segmentation  # noqa: F401
from backbones.openmmlab.config import load_config
from backbones.openmmlab.evaluation.corruption import (
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    corrupt,
    insert_corruption,
    load_library,
)
from backbones.openmmlab.evaluation.robustness import (
    Robustness,
    choose_images,
    count_these_only,
    read_robustness,
    settings_digest,
    summary,
    summary_lines,
)
from backbones.openmmlab.report import render
from backbones.openmmlab.segmentation.boundary import (
    BoundaryIoU,
    boundary,
    boundary_width,
    measure_boundaries,
)
from backbones.openmmlab.tasks import task_of_scope

# What the corruptions are as formulas: arXiv:1903.12261, ImageNet-C/create_c/make_imagenet_c.py.
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """Something with edges, colours, flat parts and texture, (64, 80, 3) uint8 RGB."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(40, 216, (6, 8, 3), np.uint8), (80, 64))
    cv2.circle(image, (30, 30), 14, (230, 40, 60), -1)
    cv2.rectangle(image, (50, 8), (72, 40), (20, 90, 200), -1)
    image[40:] = np.clip(image[40:] + rng.normal(0, 30, image[40:].shape), 0, 255)
    return image


class TestCorruptions:
    def test_are_the_papers(self):
        from imagecorruptions import get_corruption_names

        assert CORRUPTIONS == tuple(get_corruption_names("common"))
        for group, names in GROUPS.items():
            assert names == tuple(get_corruption_names(group))

    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    def test_more_severe_changes_more(self, corruption, photograph):
        images = [corrupt(photograph, corruption, s, name="a.jpg", seed=3) for s in SEVERITIES]
        assert all(x.shape == photograph.shape and x.dtype == np.uint8 for x in images)
        change = [np.abs(x.astype(float) - photograph).mean() for x in images]
        # Snow's and frost's severities differ in kind; each step of the others is a stronger one.
        assert change[0] > 0.5 and change[4] > 1.15 * change[0], change
        if corruption not in ("snow", "frost", "motion_blur", "glass_blur"):
            assert change == sorted(change), change

    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    def test_drawn_by_name_and_seed(self, corruption, photograph):
        one = corrupt(photograph, corruption, 2, name="a.jpg", seed=3)
        np.random.uniform(size=7)
        assert (corrupt(photograph, corruption, 2, name="a.jpg", seed=3) == one).all()
        drawn = corruption in (*GROUPS["noise"], *GROUPS["weather"][:3]) or corruption in (
            "glass_blur", "motion_blur", "elastic_transform",
        )  # fmt: skip
        for name, seed in (("b.jpg", 3), ("a.jpg", 4)):
            other = corrupt(photograph, corruption, 2, name=name, seed=seed)
            assert (other != one).any() == drawn

    def test_leaves_numpys_generator_as_it_was(self, photograph):
        np.random.seed(5)
        expected = np.random.uniform(size=3)
        np.random.seed(5)
        corrupt(photograph, "gaussian_noise", 1, name="a.jpg", seed=0)
        assert (np.random.uniform(size=3) == expected).all()

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_parameters_are_the_papers(self, severity, photograph):
        x = photograph / 255.0
        mean = x.mean((0, 1), keepdims=True)
        expected = np.clip((x - mean) * CONTRAST[severity - 1] + mean, 0, 1) * 255
        found = corrupt(photograph, "contrast", severity, name="", seed=0)
        assert np.abs(found - expected).max() <= 1
        grey = np.full((200, 200, 3), 128, np.uint8)
        noisy = corrupt(grey, "gaussian_noise", severity, name="", seed=0) / 255.0
        noise = np.random.default_rng(0).normal(128 / 255, NOISE[severity - 1], 10**6)
        assert noisy.std() == pytest.approx(np.clip(noise, 0, 1).std(), rel=0.02)

    def test_transform_sees_red_as_red(self, photograph):
        step = TRANSFORMS.build(dict(type="CorruptImage", seed=3))
        bgr = np.ascontiguousarray(photograph[..., ::-1])
        results = dict(img=bgr.copy(), img_path="some/where/a.jpg")
        assert (step(dict(results))["img"] == bgr).all()
        for corruption in ("frost", "snow", "jpeg_compression"):
            step.corruption, step.severity = corruption, 0
            assert (step(dict(results))["img"] == bgr).all()
            step.severity = 4
            expected = corrupt(photograph, corruption, 4, name="a.jpg", seed=3)
            found = step(dict(results))["img"]
            assert (found[..., ::-1] == expected).all() and found.flags.c_contiguous
        with pytest.raises(InputError) as caught:
            step(dict(img=np.zeros((31, 40, 3), np.uint8), img_path="tiny.png"))
        assert (caught.value.code, caught.value.where) == ("unsupported", "tiny.png")

    def test_stands_behind_the_loading(self):
        for path in (DETECTION, SEGMENTATION):
            config = load_config(path)
            before = [step["type"] for step in config.test_dataloader.dataset.pipeline]
            insert_corruption(config, 7)
            after = config.test_dataloader.dataset.pipeline
            assert [s["type"] for s in after] == [before[0], "CorruptImage", *before[1:]]
            assert after[1] == dict(type="CorruptImage", seed=7)
        config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type="LoadRGB")]))))
        with pytest.raises(InputError) as caught:
            insert_corruption(config, 0)
        assert caught.value.code == "unsupported"
        assert caught.value.where == "test_dataloader.dataset.pipeline"

    def test_missing_library_is_one_line(self, monkeypatch):
        from importlib import metadata

        def missing(name):
            raise metadata.PackageNotFoundError(name)

        assert load_library().startswith("imagecorruptions-imaug 1.")
        monkeypatch.setattr("backbones.openmmlab.evaluation.corruption.version", missing)
        with pytest.raises(InputError) as caught:
            load_library()
        assert caught.value.code == "missing-package"
        assert caught.value.where == "imagecorruptions-imaug"


def plain_boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """By definition: pixels of the mask with one outside of it within `depth` rows and columns."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for i in range(y - depth, y + depth + 1):
            for j in range(x - depth, x + depth + 1):
                inside = 0 <= i < height and 0 <= j < width and mask[i, j]
                found[y, x] |= not inside
    return found


def blobs(seed: int, shape: tuple[int, int], classes: int) -> np.ndarray:
    """A label map of a few large areas."""
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    smooth = [cv2.GaussianBlur(layer, (0, 0), min(shape) / 9) for layer in noise]
    return np.argmax(smooth, axis=0)


class TestBoundary:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 29), (64, 64)])
    @pytest.mark.parametrize("depth", [1, 2, 5])
    def test_is_the_definition(self, shape, depth):
        mask = blobs(depth, shape, 2) == 1 if min(shape) > 1 else np.ones(shape, bool)
        found = boundary(mask, depth)
        assert (found == plain_boundary(mask, depth)).all() and found.any()

    def test_depth_is_a_share_of_the_diagonal(self):
        assert [boundary_width(*s) for s in ((480, 640), (3, 4), (30, 40))] == [16, 1, 1]

    def test_a_shifted_square(self):
        """300x400, so 10 pixels deep; a square of 100 moved by 4 columns, counted by hand."""
        truth, moved = (np.zeros((300, 400), bool) for _ in range(2))
        truth[100:200, 100:200] = True
        moved[100:200, 104:204] = True
        a, b = boundary(truth, 10), boundary(moved, 10)
        ring = 100**2 - 80**2
        assert a.sum() == b.sum() == ring
        # Shared: top and bottom 96 wide, of the sides 6 of 10 columns; 80 rows between.
        shared = 2 * 10 * 96 + 2 * 6 * 80
        assert (a & b).sum() == shared
        assert metric_of([(moved, truth)])[1] == pytest.approx(shared / (2 * ring - shared))
        # Mask IoU hardly notices it, which is what the measure is for.
        assert (truth & moved).sum() / (truth | moved).sum() > 0.9 > 0.7 > shared / (2 * ring)

    def test_by_class_over_all_images_against_a_plain_count(self):
        pairs = []
        for i, shape in enumerate([(60, 80), (97, 41), (33, 33)]):
            truth, predicted = blobs(i, shape, 4), blobs(i, shape, 4)
            predicted = np.roll(predicted, 3, axis=1)
            truth[5:15, 5:20] = 255
            pairs.append((predicted, truth))
        found = metric_of(pairs, classes=6)
        for label in range(4):
            shared = covered = 0
            for predicted, truth in pairs:
                depth = max(1, round(0.02 * (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5))
                known = truth != 255
                a = plain_boundary(known & (predicted == label), depth)
                b = plain_boundary(known & (truth == label), depth)
                shared, covered = shared + (a & b).sum(), covered + (a | b).sum()
            assert found[label] == pytest.approx(shared / covered)
            assert 0.05 < found[label] < 0.95
        assert np.isnan(found[4:]).all()

    def test_ap_is_the_lesser_overlap(self, tmp_path):
        """One square found with a shift: its AP counts the thresholds below boundary IoU."""
        overlap = {}
        for shift in (0, 1, 2, 4):
            metric = coco_ap(squares(tmp_path))
            detect(metric, 0, shift)
            ap = {k.removeprefix("coco/"): v for k, v in metric.evaluate(1).items()}
            truth, moved = (np.zeros((300, 400), bool) for _ in range(2))
            truth[100:200, 100:200] = moved[100:200, 100 + shift : 200 + shift] = True
            a, b = boundary(truth, 10), boundary(moved, 10)
            overlap[shift] = (a & b).sum() / (a | b).sum()
            mask = (truth & moved).sum() / (truth | moved).sum()
            thresholds = np.linspace(0.5, 0.95, 10)
            assert ap["boundary_mAP"] == pytest.approx((thresholds <= overlap[shift]).mean())
            assert ap["segm_mAP"] == pytest.approx((thresholds <= mask).mean())
            assert ap["boundary_mAP_l"] == ap["boundary_mAP"] and ap["boundary_mAP_s"] == -1
        assert overlap[0] == 1 and overlap[4] < 0.7

    def test_asked_for_where_there_are_masks(self):
        config = load_config(DETECTION)
        measure_boundaries(config)
        assert config.test_evaluator.boundary and not config.val_evaluator.get("boundary")
        config = load_config(SEGMENTATION)
        measure_boundaries(config)
        assert [m.type for m in config.test_evaluator] == ["IoUMetric", "BoundaryIoU"]
        config = load_config(DETECTION, {"test_evaluator.metric": ["bbox"]})
        with pytest.raises(InputError) as caught:
            measure_boundaries(config)
        assert (caught.value.code, caught.value.where) == ("unsupported", "test_evaluator")


def metric_of(pairs, classes: int = 2) -> list[float]:
    """IoU by class of (predicted, truth) label maps, through the metric."""
    metric = BoundaryIoU()
    metric.dataset_meta = dict(classes=[str(i) for i in range(classes)])
    for predicted, truth in pairs:
        maps = dict(pred_sem_seg=predicted, gt_sem_seg=truth)
        sample = {k: dict(data=torch.tensor(m[None].astype(np.int64))) for k, m in maps.items()}
        metric.process(None, [sample])
    scores = metric.evaluate(len(pairs))
    mean = 100 * np.nanmean(metric.boundary_iou)
    assert scores["boundary_mIoU"] == pytest.approx(mean, abs=0.005)
    return metric.boundary_iou


def squares(folder: Path, images: int = 1) -> Path:
    """COCO annotations of images of 300x400 with one square of 100 pixels each."""
    square = [100, 100, 200, 100, 200, 200, 100, 200]
    truth = dict(
        images=[dict(id=i, width=400, height=300, file_name=f"{i}.jpg") for i in range(images)],
        categories=[dict(id=1, name="square")],
        annotations=[
            dict(id=i + 1, image_id=i, category_id=1, iscrowd=0, area=10000,
                 bbox=[100, 100, 100, 100], segmentation=[square])
            for i in range(images)
        ],
    )  # fmt: skip
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    return path


def detect(metric, image: int, shift: int = 0) -> None:
    """Give a metric the image's square, found `shift` columns beside."""
    mask = torch.zeros(1, 300, 400, dtype=torch.bool)
    mask[:, 100:200, 100 + shift : 200 + shift] = True
    found = dict(
        bboxes=torch.tensor([[100.0 + shift, 100, 200 + shift, 200]]),
        scores=torch.tensor([0.9]), labels=torch.tensor([0]), masks=mask,
    )  # fmt: skip
    metric.process(None, [dict(img_id=image, ori_shape=(300, 400), pred_instances=found)])


def coco_ap(path: Path):
    metric = METRICS.build(
        dict(type="CocoAP", ann_file=str(path), metric=["bbox", "segm"], boundary=True)
    )
    metric.dataset_meta = dict(classes=("square",))
    return metric


class TestRecord:
    def test_means_over_corruptions_and_severities(self, tmp_path):
        results = Robustness(tmp_path, dict(weights="a"))
        assert results.scores(None, 0) is None and read_robustness(tmp_path) == {}
        results.add(None, 0, dict(mIoU=50.0, other=-1.0), write=True)
        results.add("fog", 1, dict(mIoU=40.0, other=-1.0), write=True)
        assert results.record["summary"]["mIoU"] == dict(clean=50.0, mPC=40.0, rPC=0.8)
        results.add("fog", 3, dict(mIoU=20.0, other=-1.0), write=True)
        results.add("snow", 1, dict(mIoU=10.0, other=-1.0), write=True)
        # Until snow has severity 3 too, no mean: it would be one over unequal shares.
        assert results.record["summary"]["mIoU"] == dict(clean=50.0, mPC=None, rPC=None)
        results.add("snow", 3, dict(mIoU=10.0, other=-1.0), write=True)
        assert results.record["summary"]["mIoU"] == dict(clean=50.0, mPC=20.0, rPC=0.4)
        assert results.record["summary"]["other"] == dict(clean=None, mPC=None, rPC=None)
        again = Robustness(tmp_path, dict(weights="a"))
        assert again.record == results.record and again.scores("fog", 3)["mIoU"] == 20.0
        assert summary(again.record) == results.record["summary"]
        with pytest.raises(InputError) as caught:
            Robustness(tmp_path, dict(weights="b"))
        assert caught.value.code == "bad-argument"
        assert caught.value.where == str(tmp_path / "robustness.json")
        lines = summary_lines(results.record, task_of_scope("mmseg").metrics)
        assert len(lines) == 1  # of other figures a task knows nothing
        for shown in ("mIoU", " 50,", " 20,", " 0.4"):
            assert shown in lines[0]

    @pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "clean": {}}'])
    def test_a_damaged_file_is_named(self, text, tmp_path):
        (tmp_path / "robustness.json").write_text(text)
        with pytest.raises(InputError) as caught:
            read_robustness(tmp_path)
        assert caught.value.code == "broken-file"
        assert caught.value.where == str(tmp_path / "robustness.json")


def made_up_record(evil: str = "") -> dict:
    """Of a detector with boundaries, all corruptions and severities."""
    rng = np.random.default_rng(0)
    keys = [
        f"coco/{k}_mAP{e}" for k in ("bbox", "segm", "boundary") for e in ("", "_s", "_m", "_l")
    ]
    clean = {key: float(rng.uniform(0.3, 0.6)) for key in keys}
    rate = {name: rng.uniform(0.05, 0.19) for name in CORRUPTIONS}
    record = dict(
        version=1,
        subject=dict(checkpoint=f"work_dirs/x/epoch_36.pth{evil}", images="all", seed="0"),
        clean=clean,
        corrupted={
            name + evil: {
                str(s): {key: value * (1 - rate[name] * s) for key, value in clean.items()}
                for s in SEVERITIES
            }
            for name in CORRUPTIONS
        },
    )
    return dict(record, summary=summary(record))


def made_up_report(record: dict) -> dict:
    metrics = [asdict(metric) for metric in task_of_scope("mmdet").metrics]
    return dict(version=1, task="detection", metrics=metrics, robustness=record)


class TestSection:
    def test_has_the_figures(self):
        record = made_up_record()
        page = render(made_up_report(record))
        clean = record["clean"]["coco/bbox_mAP"]
        for name in CORRUPTIONS:
            assert name.replace("_", " ") in page
            assert f"{record['corrupted'][name]['5']['coco/bbox_mAP']:.3f}" in page
        assert f"{record['summary']['coco/bbox_mAP']['mPC']:.3f}" in page
        assert f"{record['summary']['coco/bbox_mAP']['rPC']:.1%}" in page
        share = record["corrupted"]["fog"]["5"]["coco/bbox_mAP"] / clean
        assert f"--lost:{60 * (1 - share):.0f}%" in page
        for title in (
            "Box AP by kind of corruption", "Mask AP by kind of corruption",
            "Boundary AP by kind of corruption", "Mask AP by size of the object",
            "Masks and their boundaries",
        ):  # fmt: skip
            assert page.count(f"<figcaption>{title}</figcaption>") == 1, title
        for size in ("small", "medium", "large"):
            assert f"</i>{size}</li>" in page
        assert "Corrupted images" not in render(dict(version=1))

    def test_half_a_measurement_is_a_page_too(self):
        record = made_up_record()
        del record["corrupted"]["fog"]["3"]
        for figures in record["corrupted"]["snow"].values():
            figures["coco/bbox_mAP_s"] = None
        record["clean"]["coco/bbox_mAP_s"] = None
        record["summary"] = summary(record)
        assert "–" in render(made_up_report(record))
        record["corrupted"] = {}
        assert "Corrupted images" not in render(dict(version=1, robustness=record))

    def test_without_names_of_metrics(self):
        """An earlier version's report: the first two scores, under the evaluator's keys."""
        record = made_up_record()
        page = render(dict(version=1, robustness=record))
        assert "coco/bbox_mAP by kind" in page.replace("Coco", "coco") and "box AP" not in page

    def test_names_of_strangers_stay_text(self):
        page = render(made_up_report(made_up_record('"><script>x</script>')))
        assert "<script" not in page and "&lt;script" in page


HERE = ("test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False")


def robustness(config, weights, shapes, folder, *more, cwd):
    return run_forked(
        "robustness.py", config, weights, "--data", shapes, "--work-dir", folder, *more,
        "--cfg-options", *HERE, cwd=cwd,
    )  # fmt: skip


class TestTool:
    def test_mistakes_end_in_one_line(self, tmp_path):
        weights = tmp_path / "none.pth"
        for option, value in (("--severities", "6"), ("--corruptions", "rain")):
            outcome = run_here("robustness.py", SEGMENTATION, weights, option, value)
            assert outcome.status == 2 and option in outcome.last_line
            assert "Traceback" not in outcome.err

    @pytest.mark.slow
    def test_goes_on_and_shows_it(self, shapes, demo_models, tmp_path):
        weights = tmp_path / "a.pth"
        shutil.copy(demo_models["segmentation"][1], weights)
        run = tmp_path / "run"
        shared = ("--corruptions", "contrast", "gaussian_noise", "--boundary")
        outcome = robustness(
            SEGMENTATION, weights, shapes, run, *shared, "--severities", 5, cwd=tmp_path
        )
        assert outcome.status == 0, outcome.err
        first = json.loads((run / "robustness.json").read_text())
        assert {k: list(v) for k, v in first["corrupted"].items()} == {
            "contrast": ["5"], "gaussian_noise": ["5"],
        }  # fmt: skip
        # Clean images are those of tools/test.py.
        tested = run_forked(
            "test.py", SEGMENTATION, weights, "--data", shapes, "--work-dir", run, "--boundary",
            "--cfg-options", *HERE, cwd=tmp_path,
        )  # fmt: skip
        assert tested.status == 0, tested.err
        plain = json.loads((run / "metrics.json").read_text())
        assert {k: plain[k] for k in ("mIoU", "aAcc", "boundary_mIoU")} == {
            k: first["clean"][k] for k in ("mIoU", "aAcc", "boundary_mIoU")
        }
        assert first["clean"] != first["corrupted"]["gaussian_noise"]["5"]
        report = json.loads((run / "report.json").read_text())
        assert report["robustness"] == first  # kept by an evaluation
        ious = [row["boundary IoU"] for row in report["evaluation"]["per_class"]]
        known = [value for value in ious if value is not None]
        assert 100 * np.mean(known) == pytest.approx(plain["boundary_mIoU"], abs=0.01)

        # A cell that is there is not measured again: a mark in it survives, and the rest is added.
        marked = json.loads(json.dumps(first))
        marked["corrupted"]["contrast"]["5"]["mIoU"] = 99.0
        (run / "robustness.json").write_text(json.dumps(marked))
        outcome = robustness(
            SEGMENTATION, weights, shapes, run, *shared, "--severities", 1, 5, cwd=tmp_path
        )
        assert outcome.status == 0, outcome.err
        second = json.loads((run / "robustness.json").read_text())
        assert second["corrupted"]["contrast"]["5"]["mIoU"] == 99.0
        assert (
            second["corrupted"]["gaussian_noise"]["5"] == first["corrupted"]["gaussian_noise"]["5"]
        )
        assert set(second["corrupted"]["gaussian_noise"]) == {"1", "5"}
        assert outcome.out.count("(measured before)") == 3
        report = json.loads((run / "report.json").read_text())
        assert report["robustness"] == second and report["evaluation"]["split"] == "test"
        assert "Corrupted images" in (run / "report.html").read_text()

        other = torch.load(weights)
        other["state_dict"]["decode_head.conv_seg.bias"][2] += 1e-3
        torch.save(other, weights)
        outcome = robustness(
            SEGMENTATION, weights, shapes, run, *shared, "--severities", 1, cwd=tmp_path
        )
        assert_error(outcome, "bad-argument", run / "robustness.json", "weights")
        assert json.loads((run / "robustness.json").read_text()) == second

    def test_a_part_of_the_images_is_scored_alone(self, tmp_path):
        """Two of five images without a mistake are an AP of 1: the other three are not missed."""
        path = squares(tmp_path, 5)
        config = load_config(DETECTION)
        config.test_dataloader.dataset.update(
            data_root="", ann_file=str(path), metainfo=dict(classes=("square",))
        )
        before = settings_digest(config)
        assert choose_images(config, None) == choose_images(config, 5) == "all"
        assert settings_digest(config) == before
        with pytest.raises(InputError) as caught:
            choose_images(config, 0)
        assert (caught.value.code, caught.value.where) == ("bad-argument", "--images")
        assert choose_images(config, 2) == "2 of 5"
        assert settings_digest(config) != before
        dataset = DATASETS.build(dict(config.test_dataloader.dataset, pipeline=[], _scope_="mmdet"))
        assert [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))] == [0, 4]
        for alone, expected in ((False, 0.4), (True, 1.0)):
            metric = coco_ap(path)
            if alone:
                count_these_only(dataset, [metric])
            detect(metric, 0)
            detect(metric, 4)
            assert metric.evaluate(2)["coco/segm_mAP"] == pytest.approx(expected, abs=0.01)
        with pytest.raises(InputError) as caught:
            choose_images(config, 2)
        assert caught.value.code == "bad-argument"
        assert caught.value.where == "test_dataloader.dataset.indices"

    @pytest.mark.slow
    def test_a_detector(self, shapes, demo_models, tmp_path):
        weights = demo_models["detection"][1]
        run = tmp_path / "run"
        outcome = robustness(
            DETECTION, weights, shapes, run, "--images", 2, "--boundary", "--severities", 3,
            "--corruptions", "fog", cwd=tmp_path,
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        record = json.loads((run / "robustness.json").read_text())
        assert record["subject"]["images"] == "2 of 4"
        assert {"coco/bbox_mAP", "coco/segm_mAP", "coco/boundary_mAP"} <= set(record["clean"])
        assert "Corrupted images" in (run / "report.html").read_text()
