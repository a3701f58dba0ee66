"""Compute COCO box, mask and boundary AP; masks are encoded while the network runs."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from mmdet.datasets.api_wrappers import COCO as MMDetCOCO
from mmdet.evaluation.metrics import CocoMetric, FasterCocoMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS

from backbones.errors import InputError

from .mask_codes import MaskCrops, crop_masks, encode_crops

# Images whose masks wait for encoding; the network waits before it gets further ahead.
AHEAD = 8
# Names of COCOeval's `stats`, in their order: mmdet's.
STATS = (
    "mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l",
    "AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000",
)  # fmt: skip


@METRICS.register_module()
class CocoAP(FasterCocoMetric):
    """Compute COCO box and mask AP with faster-coco-eval, equal to mmdet's and pycocotools'.

    Unlike mmdet's metric it scores 0 when nothing is detected, instead of returning no score, so
    that a best checkpoint and a metrics file exist then too. Masks are run-length encoded in a
    thread, while the network computes outside Python's lock. Where the model or the data set has
    no masks, only boxes are measured, with a warning.

    Args:
        ann_file: annotations in COCO's format; without one, mmdet collects them from the samples.
        args, kwargs: mmdet's; `metric` takes `bbox` and `segm`.
        boundary: measure boundary AP too (arXiv:2103.16562), the AP of masks whose overlap is the
            lesser of their IoU and that of their boundaries. It takes time.

    Attributes:
        precision: of the last evaluation, by `bbox`, `segm` and `boundary`: (10 IoU thresholds,
            101 recalls, classes in the order of their labels, 4: all sizes, small, medium and
            large) in [0, 1], NaN where there is no such object. Empty on ranks other than 0.

    Raises:
        InputError: `metric` or `metric_items` names something else, or boundaries are asked for
            without masks.
    """

    def __init__(self, ann_file: str | None = None, *args, boundary: bool = False, **kwargs):
        super().__init__(ann_file, *args, **kwargs)
        self.metrics: list[str]
        if unknown := [kind for kind in self.metrics if kind not in ("bbox", "segm")]:
            raise InputError(
                f"CocoAP: metric {unknown[0]!r} is neither 'bbox' nor 'segm'; mmdet's "
                "FasterCocoMetric measures proposals",
                code="bad-value",
                where="metric",
            )
        if boundary and "segm" not in self.metrics:
            raise InputError(
                f"CocoAP: boundary=True needs 'segm' in metric, which is {self.metrics}",
                code="bad-value",
                where="boundary",
            )
        if unknown := [item for item in self.metric_items or () if item not in STATS]:
            raise InputError(
                f"CocoAP: metric_items: {unknown[0]!r} is none of {', '.join(STATS)}",
                code="bad-value",
                where="metric_items",
            )
        if boundary:
            self.metrics = [*self.metrics, "boundary"]  # an iouType of faster-coco-eval
        self.precision: dict[str, np.ndarray] = {}
        self._file = ann_file
        self._checked = False
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode masks")
        self._waiting: list = []

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Record a batch's predictions; `masks` (n, H, W) are encoded in the background.

        Raises:
            InputError: only masks are measured, and the model or the data set has none.
        """
        for sample in data_samples:
            instances = sample["pred_instances"]
            if not self._checked:
                self._check_masks("masks" in instances)
            if isinstance(instances.get("masks"), torch.Tensor):
                crops = crop_masks(instances["masks"])
                codes: list = []
                sample = {**sample, "pred_instances": {**instances, "masks": codes}}
                self._waiting.append(self._encoder.submit(_encode, crops, codes))
            super().process(data_batch, [sample])
        while len(self._waiting) > AHEAD:
            self._waiting.pop(0).result()

    def evaluate(self, size: int) -> dict:
        """Return the metrics over all ranks' results, after the last mask has been encoded."""
        self.precision = {}
        waiting, self._waiting = self._waiting, []
        for encoded in waiting:
            encoded.result()
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return AP, AP50, AP75 and AP by size, in [0, 1], or -1 where there is no such object.

        Args:
            results: results of `process`: size and predictions of each image.
        """
        samples, predictions = zip(*results, strict=True)
        if self._coco_api is None:
            with TemporaryDirectory() as folder:
                self._coco_api = COCO(self.gt_to_coco_json(samples, f"{folder}/truth"))
        # COCOeval writes into the rows, which others read.
        rows = [dict(row) for row in self._coco_api.dataset.get("annotations", [])]
        truth = COCO({**self._coco_api.dataset, "annotations": rows})
        if self.cat_ids is None:
            self.cat_ids = truth.getCatIds(catNms=list(self._classes))
        if self.img_ids is None:
            self.img_ids = truth.getImgIds()
        if self.outfile_prefix is not None:
            self.results2json(predictions, self.outfile_prefix)
            if self.format_only:
                return {}
        figures: dict[str, float] = {}
        for kind in self.metrics:
            MMLogger.get_current_instance().info(f"computing {kind} AP")
            evaluation = self._evaluated(kind, truth, predictions)
            for item in self.metric_items or STATS[:6]:
                figures[f"{kind}_{item}"] = _rounded(evaluation.stats[STATS.index(item)])
            self.precision[kind] = _by_label(evaluation, self.cat_ids)
            if self.classwise:
                for label, category in enumerate(self.cat_ids):
                    name = truth.cats[category]["name"]
                    values = self.precision[kind][:, :, label, 0]
                    known = values[~np.isnan(values)]
                    ap = float(known.mean()) if known.size else float("nan")
                    figures[f"{name}_precision"] = _rounded(ap)
        return figures

    def _evaluated(self, kind: str, truth: COCO, predictions: Sequence[dict]) -> COCOeval_faster:
        found = truth.loadRes(self._rows(kind, predictions))
        evaluation = COCOeval_faster(truth, found, cast(Any, kind))
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = self.img_ids
        evaluation.params.maxDets = list(self.proposal_nums)
        evaluation.params.iouThrs = np.atleast_1d(np.asarray(self.iou_thrs, dtype=float))
        evaluation.run()
        return evaluation

    def _rows(self, kind: str, predictions: Sequence[dict]) -> list[dict]:
        """Return predictions in the format of COCO's result files.

        Those of masks have no box: COCO would take the object's size from it.
        """
        assert self.cat_ids is not None
        rows = []
        for found in predictions:
            if kind == "bbox":
                boxes = found["bboxes"].astype(float)  # (n, 4) x1, y1, x2, y2
                boxes[:, 2:] -= boxes[:, :2]
                places, scores = boxes.tolist(), found["scores"]
            else:
                places = [_text(code) for code in found["masks"]]
                scores = found.get("mask_scores", found["scores"])
            key = "bbox" if kind == "bbox" else "segmentation"
            rows += [
                {
                    "image_id": found["img_id"],
                    "category_id": self.cat_ids[label],
                    "score": float(score),
                    key: place,
                }
                for place, score, label in zip(places, scores, found["labels"], strict=True)
            ]
        return rows

    @property
    def _classes(self) -> Sequence[str]:
        assert self.dataset_meta is not None
        return self.dataset_meta["classes"]

    def _check_masks(self, predicted: bool) -> None:
        """Measure boxes alone if the model predicts no masks or the data set has none.

        Raises:
            InputError: boxes are not measured, boundaries are asked for, or only some of the
                objects have masks.
        """
        self._checked = True
        if "segm" not in self.metrics:
            return
        reason = None if predicted else "the model predicts no masks"
        if self._coco_api is not None:
            dataset = self._coco_api.dataset
            known = {row["id"] for row in dataset["categories"] if row["name"] in self._classes}
            rows = [r for r in dataset.get("annotations", []) if r["category_id"] in known]
            without = [row["id"] for row in rows if row.get("segmentation") is None]
            if rows and len(without) == len(rows):
                reason = f"the objects of {self._file} have no masks"
            elif without and not reason:
                raise InputError(
                    f"{self._file}: {len(without)} of {len(rows)} objects have no segmentation, "
                    f"first the one with id {without[0]}; add theirs, or set metric='bbox' to "
                    "measure boxes alone",
                    code="bad-annotations",
                    where=self._file,
                )
        if not reason:
            return
        if self.metrics != ["bbox", "segm"]:
            raise InputError(
                f"CocoAP: metric {self.metrics} cannot be measured: {reason}; set metric='bbox' "
                "and leave boundary out to measure boxes alone",
                code="bad-value",
                where="metric",
            )
        self.metrics = ["bbox"]
        MMLogger.get_current_instance().warning(f"only box AP is measured: {reason}")


def ground_truth(metric: CocoMetric) -> COCO | MMDetCOCO | None:
    """Return the annotations of a COCO metric; None if it has no annotation file."""
    return metric._coco_api


def _by_label(evaluation: COCOeval_faster, cat_ids: Sequence[int]) -> np.ndarray:
    """Return the precision at most detections; COCOeval sorts the classes by category id."""
    precision = np.asarray(evaluation.eval["precision"])[..., -1]  # (T, R, K, A)
    order = np.searchsorted(np.unique(cat_ids), cat_ids)
    return np.where(precision < 0, np.nan, precision)[:, :, order]


def _rounded(value: float) -> float:
    """Round to three digits as mmdet does: NumPy resolves ties differently from Python."""
    return float(np.round(value, 3))


def _encode(crops: MaskCrops, codes: list) -> None:
    codes.extend(encode_crops(crops))


def _text(code: Mapping[str, Any]) -> dict[str, Any]:
    counts = code["counts"]
    return {**code, "counts": counts.decode() if isinstance(counts, bytes) else counts}
