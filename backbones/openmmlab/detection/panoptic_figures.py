"""Collect a panoptic model's report figures: PQ by class, worst images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.evaluation.metrics import CocoPanopticMetric

from backbones.openmmlab.data.band_pipelines import shown_bands
from backbones.openmmlab.data.metainfo import class_colours
from backbones.openmmlab.evaluation.figures import Worst, image_pair, read_rgb
from backbones.openmmlab.panoptic_quality import PQStat, rgb2id
from backbones.openmmlab.prediction.drawing import draw_segments
from backbones.openmmlab.prediction.segments import Segments
from backbones.openmmlab.tasks import Sample


class PanopticFigures:
    """Collect PQ by class and the worst images of a panoptic model.

    Args:
        meta: the data set's meta: `classes` and perhaps `palette`.
        metric: mmdet's, which counts the matches of each image.
        count: how many of the worst images are kept.
    """

    def __init__(self, meta: Mapping, metric: CocoPanopticMetric, count: int):
        self.metric, self.bands = metric, shown_bands(meta)
        self.classes = list(meta["classes"])
        palette = meta.get("palette")
        self.palette = class_colours(len(self.classes)) if palette is None else np.array(palette)
        coco: Any = metric._coco_api
        self.segments_of, self.categories = coco.imgToAnns, coco.cats
        self.ids = coco.get_cat_ids(cat_names=self.classes)
        self.label_of = {category: label for label, category in enumerate(self.ids)}
        self.total = PQStat()
        self.worst = Worst(count)
        self.images = 0

    def add(self, sample: Sample) -> None:
        """Add one image's `pred_panoptic_seg`, which the metric has compared already."""
        stat = self.metric.results[self.images]
        self.total += stat
        self.images += 1
        means, _ = stat.pq_average(self.categories, isthing=None)
        score = means["pq"] if means["n"] else 1.0
        if self.worst.takes(score):
            matches = [stat[category] for category in self.ids]
            right, missed, false = (sum(getattr(m, k) for m in matches) for k in ("tp", "fn", "fp"))
            note = f"{right} of {right + missed} segments found, {false} false"
            found = Segments.of(sample, len(self.classes), has_void_zeros=True)
            kept = dict(found=found, note=note, image=sample.img_id)
            self.worst.add(score, str(sample.img_path), kept)

    def state(self) -> tuple:
        """Return the state that another rank merges into its own."""
        return self.total, self.images, list(self.worst)

    def merge(self, state: tuple) -> None:
        """Add the images of another rank."""
        total, images, worst = state
        self.total += total
        self.images += images
        for score, name, kept in worst:
            self.worst.add(score, name, kept)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON types, with the worst images drawn; PQ, SQ and RQ in [0, 1]."""
        _, by_class = self.total.pq_average(self.categories, isthing=None)
        rows = []
        for category, name in zip(self.ids, self.classes, strict=True):
            matches, values = self.total[category], by_class[category]
            occurs = matches.tp + matches.fp + matches.fn > 0
            scores = {
                key: values[key.lower()] if occurs else float("nan") for key in ("PQ", "SQ", "RQ")
            }
            rows.append(dict(name=name, objects=matches.tp + matches.fn, **scores))
        return dict(
            images=self.images,
            classes=self.classes,
            per_class=rows,
            image_score="PQ",
            image_note="PQ of an image is the mean over its classes.",
            pictures=self._draw(),
        )

    def _draw(self) -> list[dict]:
        names = tuple(" ".join(name.split()) for name in self.classes)
        palette = self.palette.astype(np.uint8)
        pairs = []
        for score, path, kept in self.worst:
            image, truth = read_rgb(path, self.bands), self._truth(path, kept["image"])
            if image is None or truth is None:
                continue
            drawn = [draw_segments(image, each, names, palette) for each in (truth, kept["found"])]
            pairs.append(image_pair(path, score, kept["note"], *drawn))
        return pairs

    def _truth(self, path: str, image: object) -> Segments | None:
        file = Path(self.metric.seg_prefix or "") / Path(path).with_suffix(".png").name
        colours = cv2.imread(str(file))
        if colours is None:
            return None
        rows = self.segments_of[image]
        ids = rgb2id(colours[:, :, ::-1])
        numbers = np.zeros(ids.shape, np.int32)
        for number, row in enumerate(rows, start=1):
            numbers[ids == row["id"]] = number
        return Segments(numbers, np.array([self.label_of[row["category_id"]] for row in rows], int))


def panoptic_figures(
    metrics: Sequence[object], meta: Mapping, count: int
) -> PanopticFigures | None:
    """Return the figures for a panoptic model's evaluator; None without mmdet's panoptic metric."""
    for metric in metrics:
        # With `outfile_prefix` it writes files and compares them at the end.
        if not isinstance(metric, CocoPanopticMetric) or metric.tmp_dir is None:
            continue
        if metric._coco_api is not None and meta.get("classes"):
            return PanopticFigures(meta, metric, count)
    return None
