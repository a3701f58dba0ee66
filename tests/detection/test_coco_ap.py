"""CocoAP against mmdet's metrics, pycocotools and faster-coco-eval, on hostile data too."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones import InputError
from backbones.openmmlab import detection  # noqa: F401

NAMES = ("cat", "dog", "bird")
IDS = (7, 2, 5)  # not sorted: labels follow the file, COCOeval the numbers
HEIGHT, WIDTH = 200, 260
ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


def ellipse(centre, axes) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, tuple(map(int, centre)), tuple(map(int, axes)), 0, 0, 360, 1, -1)
    return mask


def box_of(mask: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 1.0, 1.0]
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def code_of(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask))
    return dict(code, counts=code["counts"].decode())


def scene(seed: int = 0, images: int = 12) -> tuple[dict, list[dict]]:
    """Annotations with crowds and objects of all sizes, and near, far and false detections."""
    rng = np.random.default_rng(seed)
    rows, samples = [], []
    for image in range(images):
        masks, labels = [], []
        for _ in range(rng.integers(0, 7)):
            centre = rng.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
            axes = rng.choice([8, 25, 70]) * rng.uniform(0.7, 1.3, 2)
            mask, label = ellipse(centre, axes), int(rng.integers(3))
            crowd = int(rng.random() < 0.2)
            x1, y1, x2, y2 = box_of(mask)
            rows.append(
                dict(
                    id=len(rows) + 1, image_id=image, category_id=IDS[label], iscrowd=crowd,
                    bbox=[x1, y1, x2 - x1, y2 - y1], area=int(mask.sum()),
                    segmentation=code_of(mask),
                )
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                masks.append(ellipse(centre + rng.normal(0, 2, 2), axes * rng.uniform(0.8, 1.2, 2)))
                labels.append(label if rng.random() < 0.8 else int(rng.integers(3)))
        if rng.random() < 0.5:  # nothing is there
            masks.append(ellipse(rng.uniform((0, 0), (WIDTH, HEIGHT)), (30, 20)))
            labels.append(int(rng.integers(3)))
        boxes = torch.tensor([box_of(mask) for mask in masks]).reshape(-1, 4)
        instances = dict(
            bboxes=boxes + torch.tensor(rng.normal(0, 0.7, boxes.shape), dtype=torch.float32),
            scores=torch.tensor(rng.uniform(0.05, 1, len(masks)), dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.long),
            masks=torch.tensor(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH)),
        )
        samples.append(dict(img_id=image, ori_shape=(HEIGHT, WIDTH), pred_instances=instances))
    truth = dict(
        images=[dict(id=i, width=WIDTH, height=HEIGHT) for i in range(images)],
        categories=[dict(id=i, name=name) for i, name in zip(IDS, NAMES, strict=True)],
        annotations=rows,
    )
    return truth, samples


def without_detections(samples: list[dict]) -> list[dict]:
    return [
        {**s, "pred_instances": {k: v[:0] for k, v in s["pred_instances"].items()}} for s in samples
    ]


def measure(kind: str, path: Path | None, samples: list[dict], **options):
    """Evaluate twice, as a run does; return the metric and its figures without the prefix."""
    metric = METRICS.build(
        dict(type=kind, ann_file=path and str(path), **{"metric": ["bbox", "segm"], **options})
    )
    metric.dataset_meta = dict(classes=NAMES)
    for _ in range(2):
        for sample in samples:
            metric.process({}, [sample])
        figures = metric.evaluate(len(samples))
    return metric, {key.removeprefix("coco/"): value for key, value in figures.items()}


@pytest.fixture
def file(tmp_path):
    def write(truth: dict) -> Path:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        return path

    return write


@pytest.mark.parametrize("seed", range(3))
def test_is_mmdets_and_pycocotools(seed, file):
    truth, samples = scene(seed)
    path = file(truth)
    metric, figures = measure("CocoAP", path, samples)
    for kind in ("mmdet.FasterCocoMetric", "mmdet.CocoMetric"):
        assert measure(kind, path, samples)[1] == figures
    assert list(figures) == [f"{kind}_{item}" for kind in ("bbox", "segm") for item in ITEMS]
    assert all(0.05 < value < 0.98 for value in figures.values()), figures
    assert any(row["iscrowd"] for row in truth["annotations"])

    oracle_truth = COCO(str(path))
    for kind in ("bbox", "segm"):
        rows = []
        for sample in samples:
            found = sample["pred_instances"]
            for box, score, label, mask in zip(
                *(found[key].numpy() for key in ("bboxes", "scores", "labels", "masks")),
                strict=True,
            ):
                x1, y1, x2, y2 = box.tolist()
                place = (
                    dict(bbox=[x1, y1, x2 - x1, y2 - y1])
                    if kind == "bbox"
                    else dict(segmentation=code_of(mask.astype(np.uint8)))
                )
                row = dict(image_id=sample["img_id"], category_id=IDS[label], score=float(score))
                rows.append({**row, **place})
        oracle = COCOeval(oracle_truth, oracle_truth.loadRes(rows), kind)
        oracle.params.maxDets = [100, 300, 1000]
        oracle.evaluate()
        oracle.accumulate()
        expected = oracle.eval["precision"][..., -1]  # classes sorted by category id
        ours = metric.precision[kind]
        assert ours.shape == (10, 101, 3, 4)
        for label, category in enumerate(IDS):
            theirs = expected[:, :, sorted(IDS).index(category)]
            np.testing.assert_array_equal(np.isnan(ours[:, :, label]), theirs < 0)
            # faster-coco-eval divides without pycocotools' addend of 2^-52.
            found = np.nan_to_num(ours[:, :, label], nan=-1)
            np.testing.assert_allclose(found, theirs, rtol=0, atol=2**-52)
        means = [np.nanmean(ours[..., a]) for a in range(4)]
        assert figures[f"{kind}_mAP"] == float(np.round(means[0], 3))
        assert [figures[f"{kind}_mAP_{size}"] for size in "sml"] == [
            float(np.round(m, 3)) for m in means[1:]
        ]


def test_boundaries_are_faster_coco_evals_own(file):
    """Against the library run by hand on a results file, with the sizes of masks."""
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster

    truth, samples = scene(4)
    path = file(truth)
    metric, figures = measure("CocoAP", path, samples, boundary=True)
    rows = [
        dict(image_id=s["img_id"], category_id=IDS[label], score=float(score),
             segmentation=code_of(mask.numpy().astype(np.uint8)))
        for s in samples
        for mask, score, label in zip(
            *(s["pred_instances"][key] for key in ("masks", "scores", "labels")), strict=True
        )
    ]  # fmt: skip
    oracle_truth = FastCOCO(str(path))
    oracle = COCOeval_faster(oracle_truth, oracle_truth.loadRes(rows), "boundary")
    oracle.params.maxDets = [100, 300, 1000]
    oracle.run()
    expected = np.round(oracle.stats[:6], 3).tolist()
    assert [figures[f"boundary_{item}"] for item in ITEMS] == expected
    assert 0.05 < figures["boundary_mAP"] < figures["segm_mAP"]
    assert set(metric.precision) == {"bbox", "segm", "boundary"}
    # What is measured of masks does not change by it.
    assert measure("CocoAP", path, samples)[1].items() <= figures.items()


def test_mask_scores_items_and_figures_by_class_are_mmdets(file):
    truth, samples = scene(5)
    rng = np.random.default_rng(0)
    for sample in samples:
        found = sample["pred_instances"]
        found["mask_scores"] = torch.tensor(rng.uniform(0.05, 1, len(found["scores"])))
    path = file(truth)
    options = dict(classwise=True, metric_items=["mAP_75", "AR@300", "AR_s@1000"])
    _, figures = measure("CocoAP", path, samples, **options)
    theirs = measure("mmdet.FasterCocoMetric", path, samples, **options)[1]
    # mmdet names the classes in the order of the file, though COCOeval has sorted them by id.
    by_class = [theirs.pop(f"{name}_precision") for name in NAMES]
    for category, name in zip(IDS, NAMES, strict=True):
        assert figures.pop(f"{name}_precision") == by_class[sorted(IDS).index(category)]
    assert figures == theirs and len(set(by_class)) == 3
    plain = measure("CocoAP", path, samples, metric_items=["mAP_75"])[1]
    assert list(plain) == ["bbox_mAP_75", "segm_mAP_75"]


def test_no_detections_score_nothing_where_there_are_objects(file):
    truth, samples = scene()
    truth["annotations"] = [row for row in truth["annotations"] if row["area"] < 96**2]
    metric, figures = measure("CocoAP", file(truth), without_detections(samples), boundary=True)
    for kind in ("bbox", "segm", "boundary"):
        assert [figures[f"{kind}_{item}"] for item in ITEMS] == [0, 0, 0, 0, 0, -1]
        assert (metric.precision[kind][..., 0] == 0).all()
        assert np.isnan(metric.precision[kind][..., 3]).all()


@pytest.mark.parametrize("detections", [True, False])
def test_no_objects_are_no_figure(detections, file):
    truth, samples = scene()
    truth["annotations"] = []
    samples = samples if detections else without_detections(samples)
    _, figures = measure("CocoAP", file(truth), samples)
    assert set(figures.values()) == {-1.0} and len(figures) == 12


def test_annotations_of_the_samples(tmp_path):
    """Without a file, ground truth comes with the samples, as in mmdet."""
    truth, samples = scene(6)
    for sample in samples:
        rows = [
            row for row in truth["annotations"]
            if row["image_id"] == sample["img_id"] and not row["iscrowd"]
        ]  # fmt: skip
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [IDS.index(row["category_id"]) for row in rows]
        sample["gt_instances"] = dict(
            bboxes=torch.tensor(boxes), labels=torch.tensor(labels, dtype=torch.long)
        )
    _, figures = measure("CocoAP", None, samples, metric="bbox")
    theirs = measure("mmdet.FasterCocoMetric", None, samples, metric="bbox")[1]
    assert figures == theirs and 0.05 < figures["bbox_mAP"] < 0.98


class TestWithoutMasks:
    def boxes(self, samples: list[dict]) -> list[dict]:
        kept = ("bboxes", "scores", "labels")
        return [
            {**s, "pred_instances": {key: s["pred_instances"][key] for key in kept}}
            for s in samples
        ]

    def test_a_box_detector(self, file):
        truth, samples = scene()
        path = file(truth)
        metric, figures = measure("CocoAP", path, self.boxes(samples))
        assert figures == measure("mmdet.FasterCocoMetric", path, samples, metric="bbox")[1]
        assert list(metric.precision) == ["bbox"]

    @pytest.mark.parametrize("with_masks", [True, False])
    def test_a_data_set_of_boxes(self, with_masks, file):
        truth, samples = scene()
        expected = measure("CocoAP", file(truth), samples, metric="bbox")[1]
        for row in truth["annotations"]:
            del row["segmentation"]
        found = samples if with_masks else self.boxes(samples)
        assert measure("CocoAP", file(truth), found)[1] == expected
        assert 0.05 < expected["bbox_mAP"] < 0.98

    def test_what_was_asked_for_and_cannot_be_measured_is_an_error(self, file):
        truth, samples = scene()
        path = file(truth)
        for options in (dict(boundary=True), dict(metric="segm")):
            with pytest.raises(InputError) as caught:
                measure("CocoAP", path, self.boxes(samples), **options)
            assert (caught.value.code, caught.value.where) == ("bad-value", "metric")

    def test_objects_of_which_some_have_masks(self, file):
        truth, samples = scene()
        del truth["annotations"][3]["segmentation"]
        path = file(truth)
        with pytest.raises(InputError) as caught:
            measure("CocoAP", path, samples)
        assert (caught.value.code, caught.value.where) == ("bad-annotations", str(path))
        assert f"id {truth['annotations'][3]['id']}" in str(caught.value)
        # Of a class that is not evaluated it does not matter.
        truth["categories"].append(dict(id=9, name="plane"))
        truth["annotations"][3]["category_id"] = 9
        assert 0.05 < measure("CocoAP", file(truth), samples)[1]["segm_mAP"] < 0.98


@pytest.mark.parametrize(
    "options, where",
    [
        (dict(metric="proposal"), "metric"),
        (dict(metric="bbox", boundary=True), "boundary"),
        (dict(metric_items=["mAP", "mAP_xl"]), "metric_items"),
    ],
)
def test_wrong_arguments(options, where, file):
    truth, samples = scene(images=2)
    with pytest.raises(InputError) as caught:
        measure("CocoAP", file(truth), samples, **options)
    assert (caught.value.code, caught.value.where) == ("bad-value", where)


def test_results_are_written_where_asked(file, tmp_path):
    truth, samples = scene()
    _, figures = measure(
        "CocoAP", file(truth), samples, format_only=True, outfile_prefix=str(tmp_path / "found")
    )
    assert figures == {}
    rows = json.loads((tmp_path / "found.segm.json").read_text())
    assert len(rows) == sum(len(s["pred_instances"]["scores"]) for s in samples)
    assert json.loads((tmp_path / "found.bbox.json").read_text())[0]["bbox"]
