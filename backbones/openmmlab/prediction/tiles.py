"""Predict large images in overlapping tiles, merged across their seams."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from backbones.errors import InputError
from backbones.openmmlab.tasks import Sample

from .blending import blended, spread
from .exported import ExportedModel
from .instances import CroppedMask, Instances
from .predictor import Predictor
from .result import label_dtype, prediction
from .segments import Segments
from .windows import LabelFile, WindowedImage

SMALLEST_TILE = 32  # the networks' largest stride
SAME = 0.5  # IoU from which two views in the overlap of two tiles are of one object
COVERED = 0.5  # share of a sliver that another tile's view of the object must cover
WHOLE = 0.8  # share of an object's extent from which a view counts as whole


class Tile(NamedTuple):
    """Define a part of an image in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def shared(self, other: "Tile") -> "Tile":
        """Return the part that both tiles cover."""
        return Tile(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))


class TiledPredictor:
    """Predict an image in tiles, with memory bounded by the tile size.

    Each tile goes through the config's own pipeline, as if it were an image. An image that fits one
    tile gives exactly the predictor's result. Otherwise detections are joined by `merge_instances`
    and logits are blended: where tiles overlap, each has a weight that falls to its edge.

    Beside the image and its label map, a segmentor's memory holds the logits of a batch of tiles,
    their sums, of one tile, and those of the strip that two rows of tiles share, which is as long
    as the image's shorter side.

    Args:
        predictor: a detector or segmentor.
        tile: side of a tile in pixels, at least 32.
        overlap: minimum number of pixels that neighbours share; None means a quarter of a tile.
        batch_size: number of tiles in a batch.

    Raises:
        InputError: the tile is too small, the overlap is not smaller than the tile, or the model is
            a classifier or panoptic.
    """

    def __init__(
        self, predictor: Predictor, tile: int, overlap: int | None = None, batch_size: int = 1
    ):
        overlap = tile // 4 if overlap is None else overlap
        check_tile(tile, overlap)
        if predictor.task == "classification":
            raise InputError(
                "--tile: a classifier needs the whole image; leave --tile out",
                code="unsupported",
                where="--tile",
            )
        if predictor.task == "segmentation" and isinstance(predictor.model, ExportedModel):
            raise InputError(
                "--tile: blends a segmentor's logits, which exported files do not keep; use the "
                "config and the checkpoint",
                code="unsupported",
                where="--tile",
            )
        fusion = getattr(predictor.model, "panoptic_fusion_head", None)
        if fusion is not None and (fusion.test_cfg or {}).get("panoptic_on", True):
            raise InputError(
                "--tile: a panoptic model needs the whole image; leave --tile out",
                code="unsupported",
                where="--tile",
            )
        self.predictor, self.tile, self.overlap = predictor, tile, overlap
        self.batch_size = batch_size

    def __call__(
        self,
        image: np.ndarray | WindowedImage,
        on_tile: Callable[[int, int], None] | None = None,
        out: LabelFile | None = None,
    ) -> Instances | Segments | np.ndarray | None:
        """Predict one image.

        Args:
            image: (H, W, 3) uint8 in BGR order as OpenCV reads it, or a raster read in windows.
            on_tile: called with the number of finished tiles and the number of all.
            out: file that a segmentor's labels are written to, part by part.

        Returns:
            The instances of a detector, or the labels (H, W), uint8 or uint16, of a segmentor;
            None if they went to `out`.
        """
        height, width = image.shape[:2]
        if out is None and isinstance(image, np.ndarray) and max(height, width) <= self.tile:
            (sample,) = self.predictor.batch([image])
            return prediction(sample, len(self.predictor.classes))
        if self.predictor.task == "detection":
            grid = [
                Tile(left, top, right, bottom)
                for top, bottom in spread(height, self.tile, self.overlap)
                for left, right in spread(width, self.tile, self.overlap)
            ]
            samples = self._predicted(image, grid, on_tile)
            # Of each tile only the cropped masks are kept.
            return merge_instances(
                (tile, None if x is None else Instances.of(x.pred_instances).moved(*tile[:2]))
                for tile, x in samples
            )
        if out is not None:
            self._write_labels(image, on_tile, out)
            return None
        labels = np.empty((height, width), label_dtype(len(self.predictor.classes)))
        self._write_labels(image, on_tile, labels)
        return labels

    def _predicted(
        self,
        image: np.ndarray | WindowedImage,
        grid: Sequence[Tile],
        on_tile: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[Tile, Sample | None]]:
        """Yield each tile with its prediction, None where the file holds no data."""
        for start in range(0, len(grid), self.batch_size):
            tiles = grid[start : start + self.batch_size]
            crops = [image[t.top : t.bottom, t.left : t.right] for t in tiles]
            with_data = [crop for crop in crops if crop is not None]
            samples = iter(self.predictor.batch(with_data) if with_data else ())
            for tile, crop in zip(tiles, crops, strict=True):
                yield tile, None if crop is None else next(samples)
            if on_tile is not None:
                on_tile(start + len(tiles), len(grid))

    def _write_labels(
        self,
        image: np.ndarray | WindowedImage,
        on_tile: Callable[[int, int], None] | None,
        out: np.ndarray | LabelFile,
    ) -> None:
        """Blend logits row by row of tiles along the shorter side; write the labels (H, W)."""
        height, width = image.shape[:2]
        rows = spread(height, self.tile, self.overlap)
        columns = spread(width, self.tile, self.overlap)
        turned = width > height  # then the rows that are carried on are columns of the image
        if turned:
            rows, columns = columns, rows
        grid = [
            Tile(c[0], r[0], c[1], r[1]) if not turned else Tile(r[0], c[0], r[1], c[1])
            for r in rows
            for c in columns
        ]
        model = self.predictor.model
        with self.predictor.keeping_logits():
            samples = self._predicted(image, grid, on_tile)
            logits = (None if x is None else x.seg_logits.data for _, x in samples)
            if turned:
                logits = (None if x is None else x.mT for x in logits)
            for down, across, block in blended(logits, rows, columns, self.overlap):
                part = (across, down) if turned else (down, across)
                if block is None:
                    out[part] = np.iinfo(out.dtype).max
                    continue
                if len(block) == 1:
                    found = block[0].sigmoid() > model.decode_head.threshold
                else:
                    found = block.argmax(0)
                labels = (found.mT if turned else found).cpu().numpy()
                if isinstance(out, LabelFile):
                    labels = labels.astype(out.dtype)
                    if isinstance(image, WindowedImage):
                        labels[image.missing(part)] = out.ignored
                out[part] = labels


def check_tile(tile: int, overlap: int) -> None:
    """Raise InputError unless the tile is large enough and larger than its overlap."""
    if tile < SMALLEST_TILE:
        raise InputError(f"--tile {tile}: must be at least {SMALLEST_TILE} pixels", where="--tile")
    if not 0 <= overlap < tile:
        raise InputError(
            f"--overlap {overlap}: must be at least 0 and less than the tile, {tile} pixels",
            where="--overlap",
        )


def check_tiling(tile: int | None, overlap: int | None) -> None:
    """Raise InputError unless the two arguments fit each other; None is one that is not given."""
    if tile is not None:
        check_tile(tile, tile // 4 if overlap is None else overlap)
    elif overlap is not None:
        raise InputError(f"--overlap {overlap}: requires --tile", where="--overlap")


def merge_instances(found: Iterator[tuple[Tile, Instances | None]]) -> Instances:
    """Merge the detections of overlapping tiles: each object once, with one whole mask.

    Where two tiles overlap they see the same. Two detections of a class are views of one object if
    there, and only there, their masks agree, however little of the object is in the overlap; boxes
    are compared where there are no masks. An object is never two detections of one tile. Of its
    views one that no edge of a tile cuts is taken as it is. If all are cut, their masks are united,
    with the highest score. A cut view that agrees with nothing is dropped if a tile that sees all
    of it and more has a view of its class that covers it: slivers of objects are not seen well.

    Args:
        found: tiles and their instances, in pixels of the image; None of tiles that hold no data.

    Returns:
        The instances, highest score first.
    """
    grid: list[Tile] = []
    tiles: list[Tile] = []
    parts: list[Instances] = []
    for tile, instances in found:
        grid.append(tile)
        if instances is not None:
            tiles.append(tile)
            parts.append(instances)
    extent = Tile(*np.min(grid, 0)[:2], *np.max(grid, 0)[2:])
    cut = [_cut(tile, extent, part) for tile, part in zip(tiles, parts, strict=True)]

    pairs, covered = [], set()  # (IoU, view, view), where a view is (tile, number)
    for a, b in _overlapping(tiles):
        region = tiles[a].shared(tiles[b])
        one, two = (_inside(parts[k], region) for k in (a, b))
        if not len(one) or not len(two):
            continue
        first, second = (_shapes(parts[k], which, region) for k, which in ((a, one), (b, two)))
        alike = parts[a].labels[one][:, None] == parts[b].labels[two]
        ious = np.where(alike, coco_mask.iou(first, second, [0] * len(second)), 0)
        pairs += [(ious[i, j], (a, one[i]), (b, two[j])) for i, j in np.argwhere(ious >= SAME)]
        # With COCO's crowds the IoU is the share of the first that is covered.
        of_first = np.where(alike, coco_mask.iou(first, second, [1] * len(second)), 0)
        of_second = np.where(alike, np.transpose(coco_mask.iou(second, first, [1] * len(first))), 0)
        slivers = cut[a][one] & _within(parts[a].boxes[one], tiles[b])
        covered |= {(a, i) for i in one[slivers & (of_first >= COVERED).any(1)]}
        slivers = cut[b][two] & _within(parts[b].boxes[two], tiles[a])
        covered |= {(b, j) for j in two[slivers & (of_second >= COVERED).any(0)]}

    objects = {(k, i): {k: i} for k, part in enumerate(parts) for i in range(len(part))}
    for _, a, b in sorted(pairs, key=lambda pair: -pair[0]):
        one, two = objects[a], objects[b]
        if one.keys().isdisjoint(two):
            one.update(two)
            for view in two.items():
                objects[view] = one
    distinct = {id(views): views for views in objects.values()}.values()
    merged = []
    for views in distinct:
        if len(views) > 1 or covered.isdisjoint(views.items()):
            one_by_one = [parts[k][np.array([i])] for k, i in views.items()]
            merged.append(_joined(one_by_one, [cut[k][i] for k, i in views.items()]))
    return _best_first(merged, with_masks=bool(parts) and parts[0].masks is not None)


def _overlapping(tiles: list[Tile]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of tiles that share pixels."""
    sides = np.array(tiles)
    for a, tile in enumerate(tiles):
        later = sides[a + 1 :]
        near = (later[:, :2] < tile[2:]).all(1) & (later[:, 2:] > tile[:2]).all(1)
        yield from ((a, a + 1 + b) for b in np.flatnonzero(near))


def _cut(tile: Tile, extent: Tile, instances: Instances) -> np.ndarray:
    """Return whether each box (n,) touches an edge of its tile inside the image."""
    margin = _margin(tile)
    boxes = instances.boxes
    low = (boxes[:, :2] < np.array(tile[:2]) + margin) & (np.array(tile[:2]) > extent[:2])
    high = (boxes[:, 2:] > np.array(tile[2:]) - margin) & (np.array(tile[2:]) < extent[2:])
    return np.asarray((low | high).any(1))


def _within(boxes: np.ndarray, tile: Tile) -> np.ndarray:
    """Return whether each box (n,) lies in a tile, within the margin."""
    margin = _margin(tile)
    low, high = np.array(tile[:2]) - margin, np.array(tile[2:]) + margin
    return np.logical_and((boxes[:, :2] >= low).all(1), (boxes[:, 2:] <= high).all(1))


def _margin(tile: Tile) -> float:
    """Return the distance to an edge within which the box of a cut object may end."""
    return max(2, 0.01 * min(tile.right - tile.left, tile.bottom - tile.top))


def _inside(instances: Instances, region: Tile) -> np.ndarray:
    """Return the indices of the instances whose boxes overlap a region."""
    boxes = instances.boxes
    return np.flatnonzero((boxes[:, :2] < region[2:]).all(1) & (boxes[:, 2:] > region[:2]).all(1))


def _shapes(instances: Instances, which: np.ndarray, region: Tile) -> Any:
    """Return COCO run lengths, or boxes (x, y, w, h) without masks, clipped to a region."""
    if instances.masks is not None:
        return [instances.masks[i].within(region) for i in which]
    low = np.maximum(instances.boxes[which, :2], region[:2])
    high = np.minimum(instances.boxes[which, 2:], region[2:])
    return np.concatenate([low, high - low], 1).astype(np.float64)


def _joined(views: list[Instances], cut: list[bool]) -> Instances:
    """Merge the views of one object into one instance."""
    if len(views) == 1:
        return views[0]
    boxes = np.concatenate([view.boxes for view in views])
    box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    extent = (box[2:] - box[:2]).prod()
    whole = [i for i, area in enumerate(areas) if not cut[i] and area >= WHOLE * extent]
    if whole:
        return max((views[i] for i in whole), key=lambda view: view.scores[0])
    masks = None
    if views[0].masks is not None:
        masks = [CroppedMask.union(mask for view in views for mask in view.masks or ())]
    best = max(view.scores[0] for view in views)
    return Instances(box[None], np.array([best]), views[0].labels, masks)


def _best_first(instances: list[Instances], with_masks: bool) -> Instances:
    if not instances:
        empty = np.zeros((0, 4), np.float32)
        return Instances(empty, empty[:, 0], np.zeros(0, np.int64), [] if with_masks else None)
    instances = sorted(instances, key=lambda instance: -instance.scores[0])
    return Instances(
        np.concatenate([instance.boxes for instance in instances]),
        np.concatenate([instance.scores for instance in instances]),
        np.concatenate([instance.labels for instance in instances]),
        [mask for one in instances for mask in one.masks or ()] if with_masks else None,
    )
