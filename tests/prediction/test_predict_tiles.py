"""Any image: tiles against the whole, seams, memory, batches, videos, files that are no images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from pycocotools import mask as coco_mask
from support.predicting import LOOSE, noise, options
from support.running import DETECTION, assert_error, command, run_here

from backbones import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.prediction.blending import spread
from backbones.openmmlab.prediction.drawing import draw_instances
from backbones.openmmlab.prediction.instances import CroppedMask, Instances
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.tiles import Tile, TiledPredictor, merge_instances

CLASSES = ("round", "square")


def random_masks(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = rng.integers(1, 14, 2)
        yield rng, rng.random(shape) < rng.choice([0, 0.2, 0.5, 0.9, 1])


class TestCroppedMask:
    def test_runs_are_cocos(self):
        for _, mask in random_masks(200):
            height, width = mask.shape
            cropped = CroppedMask.of(mask)
            expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert cropped.within((0, 0, width, height)) == expected
            assert cropped.area == mask.sum()

    def test_windows_and_moves(self):
        for rng, mask in random_masks(200):
            height, width = mask.shape
            canvas = np.zeros((60, 60), bool)
            canvas[20 : 20 + height, 20 : 20 + width] = mask
            left, top = rng.integers(10, 34, 2)
            right, bottom = (left, top) + rng.integers(1, 20, 2)
            runs = CroppedMask.of(mask).moved(20, 20).within((left, top, right, bottom))
            assert (coco_mask.decode(runs) == canvas[top:bottom, left:right]).all()

    def test_unions(self):
        masks = [mask for _, mask in random_masks(60)]
        for first, second in zip(masks, masks[1:], strict=False):
            canvas = np.zeros((40, 40), bool)
            canvas[3 : 3 + len(first), 5 : 5 + first.shape[1]] |= first
            canvas[9 : 9 + len(second), 2 : 2 + second.shape[1]] |= second
            moved = CroppedMask.of(first).moved(5, 3), CroppedMask.of(second).moved(2, 9)
            runs = CroppedMask.union(moved).within((0, 0, 40, 40))
            assert (coco_mask.decode(runs) == canvas).all()

    @pytest.mark.parametrize("factor", [1, 2, 5, 0.4, 0.09])
    def test_scales_are_opencvs_nearest_pixels(self, factor):
        rng = np.random.default_rng(1)
        mask = np.zeros((200, 300), bool)
        mask[40:130, 70:260] = rng.random((90, 190)) < 0.5
        size = (round(300 * factor), round(200 * factor))
        how = cv2.INTER_NEAREST_EXACT
        expected = cv2.resize(mask.astype(np.uint8), size, interpolation=how)
        left, top, pixels = CroppedMask.of(mask).scaled(factor)
        found = np.zeros_like(expected)
        found[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
        assert expected.any() and (found == expected).all()


@pytest.mark.parametrize("length", [32, 33, 100, 640, 641, 10_000])
@pytest.mark.parametrize("tile, overlap", [(32, 0), (32, 31), (100, 25), (640, 400)])
def test_tiles_cover_a_side(length, tile, overlap):
    spans = spread(length, tile, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert {last - first for first, last in spans} == {min(tile, length)}
    shared = [one[1] - two[0] for one, two in zip(spans, spans[1:], strict=False)]
    assert all(overlap <= pixels < tile for pixels in shared)
    if len(spans) > 1:  # one tile fewer would not do
        assert (len(spans) - 1) * (tile - overlap) + overlap < length


class PerfectDetector:
    """Sees each coloured shape of an image: red is round, green square, brighter is surer."""

    task, classes, model = "detection", CLASSES, None

    def __init__(self, with_masks: bool = True):
        self.with_masks, self.largest = with_masks, 0

    def batch(self, images):
        self.largest = max(self.largest, *(max(image.shape[:2]) for image in images))
        return [self.sample(image) for image in images]

    def sample(self, image: np.ndarray) -> BaseDataElement:
        boxes, scores, labels, masks = [], [], [], []
        for label, channel in enumerate((2, 1)):
            plane = image[:, :, channel]
            for value in np.unique(plane[plane > 0]):
                mask = plane == value
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                scores.append(value / 255)
                labels.append(label)
                masks.append(torch.from_numpy(mask))
        found = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.long),
        )
        if self.with_masks:
            found.masks = torch.stack(masks) if masks else torch.zeros(0, *image.shape[:2]).bool()
        return BaseDataElement(pred_instances=found)


def shapes_on(
    height: int, width: int, largest: int, count: int, seed: int, *, round_ones: bool = True
) -> np.ndarray:
    """Convex shapes apart from one another, each in a colour of its own."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    taken = np.zeros((height, width), np.uint8)
    value = 60
    for _ in range(40 * count):
        half = rng.integers(4, largest // 2 + 1, 2).tolist()
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        shape = np.zeros((height, width), np.uint8)
        if value % 2 and round_ones:
            cv2.ellipse(shape, centre, half, float(rng.integers(0, 180)), 0, 360, 1, -1)
        else:
            ends = [np.subtract(centre, half).tolist(), np.add(centre, half).tolist()]
            cv2.rectangle(shape, *ends, 1, -1)
        if (cv2.dilate(shape, np.ones((9, 9))) & taken).any():
            continue
        taken |= shape
        image[shape > 0, 2 if value % 2 else 1] = value
        value += 1
        if value == 60 + count:
            return image
    raise AssertionError("no room for so many shapes")


def by_score(instances: Instances) -> Instances:
    return instances[np.argsort(-instances.scores, kind="stable")]


def assert_same(found: Instances, expected: Instances, size: tuple[int, int]) -> None:
    found, expected = by_score(found), by_score(expected)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert (found.masks is None) == (expected.masks is None)
    assert found.coco(*size) == expected.coco(*size)


class TestSeamsOfDetectors:
    @pytest.mark.parametrize("with_masks", [True, False], ids=["masks", "boxes"])
    @pytest.mark.parametrize(
        "tile, overlap, largest", [(128, 32, 28), (128, 24, 120), (100, 70, 90), (96, 16, 250)]
    )
    def test_shapes_come_out_once_and_whole(self, tile, overlap, largest, with_masks):
        """Within the overlap, larger than it, and larger than a tile."""
        detector = PerfectDetector(with_masks)
        for seed, size in enumerate([(300, 410), (511, 129), (90, 400)]):
            count = 14 if largest < 100 else 5 if largest < 200 else 2
            # Boxes alone do not say what of an ellipse is in another tile.
            image = shapes_on(*size, largest, count, seed, round_ones=with_masks)
            expected = Instances.of(detector.sample(image).pred_instances)
            assert len(expected) == count
            tiled = TiledPredictor(detector, tile, overlap, batch_size=3)
            detector.largest = 0
            found = tiled(image)
            assert detector.largest == tile
            assert_same(found, expected, size)

    def test_nothing_to_see(self):
        found = TiledPredictor(PerfectDetector(), 64)(np.zeros((200, 150, 3), np.uint8))
        assert len(found) == 0 and found.masks == [] and found.coco(200, 150) == []

    def views(self, *objects, more=()):
        """Two tiles of 100 that share 20 columns, and what they see: (tile, box, score, label)."""
        tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 180, 100)]
        parts = []
        for number, tile in enumerate(tiles):
            mine = [(box, score, label) for n, box, score, label in objects if n == number]
            masks = []
            for (left, top, right, bottom), *_ in mine:
                masks.append(CroppedMask.of(np.ones((bottom - top, right - left), bool), left, top))
            parts.append(
                (
                    tile,
                    Instances(
                        np.array([box for box, *_ in mine], np.float32).reshape(-1, 4),
                        np.array([score for _, score, _ in mine], np.float32),
                        np.array([label for *_, label in mine], np.int64),
                        masks,
                    ),
                )
            )
        return merge_instances(iter([*parts, *more]))

    def test_a_whole_view_is_taken_as_it_is(self):
        found = self.views((0, (70, 10, 99, 42), 0.9, 0), (1, (82, 11, 120, 40), 0.6, 0))
        assert len(found) == 1 and found.scores[0] == np.float32(0.9)  # both are cut: united
        np.testing.assert_array_equal(found.boxes, [[70, 10, 120, 42]])
        found = self.views((0, (84, 10, 99, 42), 0.9, 0), (1, (85, 11, 120, 40), 0.6, 0))
        np.testing.assert_array_equal(found.boxes, [[85, 11, 120, 40]])  # the second is whole
        assert found.scores[0] == np.float32(0.6) and found.masks[0].area == 35 * 29

    def test_tiles_without_data_are_of_the_image(self):
        objects = (0, (82, 10, 100, 40), 0.9, 0), (1, (82, 10, 180, 40), 0.6, 0)
        # At the image's border the second view is whole; beside a tile without data it is cut.
        assert self.views(*objects).scores == np.float32(0.6)
        found = self.views(*objects, more=[(Tile(160, 0, 260, 100), None)])
        np.testing.assert_array_equal(found.boxes, [[82, 10, 180, 40]])
        assert found.scores == np.float32(0.9)
        assert len(merge_instances(iter([(Tile(0, 0, 100, 100), None)]))) == 0

    def test_a_sliver_yields_to_the_whole(self):
        found = self.views((0, (95, 20, 100, 26), 0.3, 0), (1, (94, 10, 140, 40), 0.8, 0))
        np.testing.assert_array_equal(found.boxes, [[94, 10, 140, 40]])
        # Of another class it does not, nor what no edge cuts.
        assert len(self.views((0, (95, 20, 100, 26), 0.3, 1), (1, (94, 10, 140, 40), 0.8, 0))) == 2
        assert len(self.views((0, (85, 20, 95, 26), 0.3, 0), (1, (84, 10, 140, 40), 0.8, 0))) == 2

    def test_neighbours_stay_two(self):
        """Side by side across the seam, and two of one tile beside one of the other."""
        found = self.views((0, (60, 10, 88, 40), 0.9, 0), (1, (90, 10, 120, 40), 0.8, 0))
        assert len(found) == 2
        found = self.views(
            (0, (60, 10, 100, 40), 0.9, 0),
            (0, (60, 22, 100, 52), 0.7, 0),
            (1, (80, 10, 120, 42), 0.8, 0),
            (1, (80, 20, 120, 52), 0.6, 0),
        )
        assert [box[1] for box in found.boxes.tolist()] == [10, 20]
        np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.7]))


class SmoothSegmentor:
    """Logits of each crop that change with where in the crop a pixel is, as a network's do."""

    task = "segmentation"

    def __init__(self, classes: int, side: int):
        self.classes = tuple(map(str, range(classes)))
        self.model = torch.nn.Module()
        self.model.decode_head = torch.nn.Module()
        self.model.decode_head.threshold = 0.3
        self.fields = torch.randn(classes, side, side, generator=torch.manual_seed(0)) / 3
        self.largest = 0

    def keeping_logits(self):
        from contextlib import nullcontext

        return nullcontext()

    def logits(self, crop: np.ndarray) -> torch.Tensor:
        height, width = crop.shape[:2]
        # Each pixel's colour says how likely it is of each class.
        x = torch.from_numpy(crop.astype(np.float32) / 64)
        phases = torch.arange(len(self.classes))[:, None, None] / 2
        seen = torch.sin(x[:, :, 0] + phases) + torch.cos(x[:, :, 1] * (1 + phases))
        return seen + self.fields[:, :height, :width]

    def batch(self, images):
        self.largest = max(self.largest, *(max(image.shape[:2]) for image in images))
        return [self.sample(image) for image in images]

    def sample(self, image):
        logits = self.logits(image)
        labels = logits.argmax(0, keepdim=True)
        if len(logits) == 1:
            labels = (logits.sigmoid() > self.model.decode_head.threshold).long()
        return BaseDataElement(
            seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=labels)
        )


def blended_at_once(segmentor, image, tile: int, overlap: int) -> np.ndarray:
    """Labels of the weighted mean of all tiles' logits, in float64 and as large as the image."""
    height, width = image.shape[:2]
    total = np.zeros((len(segmentor.classes), height, width))
    weight = np.zeros((height, width))

    def ramp(size):
        middle = np.arange(size) + 0.5
        return np.minimum(np.minimum(middle, size - middle) / max(overlap, 1), 1)

    for top, bottom in spread(height, tile, overlap):
        for left, right in spread(width, tile, overlap):
            window = np.outer(ramp(bottom - top), ramp(right - left))
            logits = segmentor.logits(image[top:bottom, left:right]).double().numpy()
            total[:, top:bottom, left:right] += window * logits
            weight[top:bottom, left:right] += window
    mean = total / weight
    if len(mean) == 1:
        return 1 / (1 + np.exp(-mean[0])) > 0.3
    return mean.argmax(0)


class TestSeamsOfSegmentors:
    @pytest.mark.parametrize("classes", [1, 5])
    @pytest.mark.parametrize("size", [(150, 230), (301, 97), (64, 200), (200, 50)])
    @pytest.mark.parametrize("tile, overlap", [(64, 16), (64, 0), (64, 50), (96, 48)])
    def test_strips_equal_the_whole_map(self, tile, overlap, size, classes):
        image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
        segmentor = SmoothSegmentor(classes, tile)
        found = TiledPredictor(segmentor, tile, overlap, batch_size=4)(image)
        expected = blended_at_once(segmentor, image, tile, overlap)
        assert found.dtype == np.uint8 and segmentor.largest <= tile
        assert len(np.unique(expected)) == max(classes, 2)
        assert (found != expected).mean() < 1e-4  # ties that rounding breaks
        # It is not the label map of tiles laid side by side.
        if overlap:
            side_by_side = TiledPredictor(segmentor, tile, 0)(image)
            assert (side_by_side != expected).mean() > 0.001

    def test_many_classes(self):
        image = np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        segmentor = SmoothSegmentor(300, 64)
        found = TiledPredictor(segmentor, 64)(image)
        assert found.dtype == np.uint16
        assert (found != blended_at_once(segmentor, image, 64, 16)).mean() < 1e-3


def test_large_pictures_are_drawn_small(monkeypatch):
    """Reduced by half, at the places where the halved image has them."""
    from backbones.openmmlab.prediction import drawing

    monkeypatch.setattr(drawing, "LARGEST_SIDE", 600)
    image = shapes_on(900, 1200, 200, 12, 5)
    found = Instances.of(PerfectDetector().sample(image).pred_instances)
    picture = np.array(draw_instances(image, found.boxes, found.labels, None, CLASSES, found.masks))
    assert picture.shape == (450, 600, 3)
    small = Instances.of(
        PerfectDetector().sample(np.ascontiguousarray(image[::2, ::2])).pred_instances
    )
    monkeypatch.setattr(drawing, "SMALLEST_SIDE", 450)
    expected = np.array(
        draw_instances(image[::2, ::2], small.boxes, small.labels, None, CLASSES, small.masks)
    )
    assert np.abs(picture.astype(int) - expected).mean() < 4


def assert_same_in_any_order(found, expected) -> None:
    """Compare scores and boxes; rounding orders the nearly equal scores of an untrained model."""
    # Scores agree to 0.001 where boxes of up to 100 pixels do to 0.1.
    one, other = (torch.cat([100 * x.scores[:, None], x.bboxes], 1) for x in (found, expected))
    assert len(one) == len(other)
    apart = (one[:, None] - other).abs().amax(2)
    assert apart.amin(0).max() <= 0.1 and apart.amin(1).max() <= 0.1


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_an_image_in_one_tile_and_images_in_batches(task, demo_models):
    """Exactly the untiled result; in batches what each image gives alone."""
    config, checkpoint = demo_models[task]
    config = load_config(config, LOOSE if task == "detection" else None)
    predictor = Predictor(config, str(checkpoint), device="cpu")
    sizes = [(96, 96), (64, 100), (96, 96), (50, 96)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    tiled = TiledPredictor(predictor, 100, batch_size=2)
    together = predictor.batch(images)
    for image, batched in zip(images, together, strict=True):
        alone = predictor(image)
        if task == "detection":
            assert 5 < len(alone.pred_instances)
            assert_same(tiled(image), Instances.of(alone.pred_instances), image.shape[:2])
            assert_same_in_any_order(batched.pred_instances, alone.pred_instances)
        else:
            labels = alone.pred_sem_seg.data[0].numpy()
            assert len(np.unique(labels)) > 1
            np.testing.assert_array_equal(tiled(image), labels)
            assert (batched.pred_sem_seg.data[0].numpy() != labels).mean() < 1e-3
            assert "seg_logits" not in alone

    larger = noise(150, 260)
    found = tiled(larger)
    if task == "segmentation":
        # Far from seams the label is that of the tile alone.
        np.testing.assert_array_equal(
            found[:50, :50], predictor(larger[:100, :100]).pred_sem_seg.data[0][:50, :50].numpy()
        )
        assert not predictor.model.keep_logits
    else:
        assert (found.boxes[:, 2:] <= [260, 150]).all() and found.boxes[:, 2].max() > 200


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of images, two of one name, a cut one, an empty one and a text."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "deep/a.png"]):
        cv2.imwrite(str(folder / name), noise(64 + 20 * number, 90, number))
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-500])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_bad_files_are_listed_and_the_rest_is_done(pictures, demo_models, tmp_path):
    config, checkpoint = demo_models["detection"]
    outcome = run_here(
        "predict.py", config, checkpoint, pictures, f"{pictures}/deep/*", "--batch-size", 2,
        "--out", tmp_path / "out", *options("detection"),
    )  # fmt: skip
    assert_error(outcome, "bad-image", "2 of 5")
    for name in ("cut.jpg", "empty.png"):
        assert f"{pictures / name}: " in outcome.err
    assert re.search(r"^\[5/5\] a\.png: \d+ objects?$", outcome.out, re.M)
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["a.png", "a_2.png", "b.png"]
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(row["width"], row["height"]) for row in coco["images"]] == [
        (90, 64),
        (90, 84),
        (90, 104),
    ]
    sizes = {row["image_id"]: row["segmentation"]["size"] for row in coco["annotations"]}
    assert sizes == {1: [64, 90], 2: [84, 90], 3: [104, 90]}
    assert "notes" not in outcome.out + outcome.err


def test_an_image_that_the_network_cannot_take(demo_models, tmp_path):
    config, checkpoint = demo_models["segmentation"]
    for name, size in (("a.png", (90, 64)), ("narrow.png", (2, 900)), ("z.png", (90, 64))):
        cv2.imwrite(str(tmp_path / name), noise(*size))
    outcome = run_here(
        "predict.py", config, checkpoint, tmp_path, "--batch-size", 3, "--out", tmp_path / "out"
    )
    assert_error(outcome, "bad-image", tmp_path / "narrow.png", "900x2")
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["a.png", "z.png"]


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        read, frame = capture.read()
        if not read:
            return frames
        frames.append(frame)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_video(task, demo_models, tmp_path):
    config, checkpoint = demo_models[task]
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.5, (90, 70))
    for number in range(5):
        writer.write(np.roll(noise(70, 90, 4), 9 * number, axis=1))
    writer.release()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(path.read_bytes()[:600])
    outcome = run_here(
        "predict.py", config, checkpoint, path, broken, "--batch-size", 2, "--tile", 64,
        "--out", tmp_path / "out", *options(task),
    )  # fmt: skip
    assert_error(outcome, "bad-image", broken)
    written = tmp_path / "out" / "videos" / "clip.mp4"
    assert sorted(p.name for p in written.parent.iterdir()) == ["clip.jsonl", "clip.mp4"]
    assert cv2.VideoCapture(str(written)).get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    frames = frames_of(written)
    assert len(frames) == 5 and {frame.shape for frame in frames} == {frames[0].shape}
    plain = cv2.resize(frames_of(path)[3], (630, 490), interpolation=cv2.INTER_CUBIC)
    drawn = frames[3][:490, :630]
    assert 5 < np.abs(drawn.astype(int) - plain).mean() < 90  # the frame, drawn upon
    lines = [json.loads(line) for line in (written.with_suffix(".jsonl")).open()]
    assert [row["frame"] for row in lines] == [0, 1, 2, 3, 4]
    assert lines[2]["seconds"] == pytest.approx(0.16)
    if task == "detection":
        assert all(
            row["segmentation"]["size"] == [70, 90] for line in lines for row in line["annotations"]
        )
        assert lines[0]["annotations"] != lines[1]["annotations"]
    else:
        maps = [np.array(Image.open(tmp_path / "out" / line["labels"])) for line in lines]
        assert {labels.shape for labels in maps} == {(70, 90)}
        assert (maps[0] != maps[1]).any()


class TestMistakes:
    def refused(self, code: str, *arguments, names: tuple = ()):
        assert_error(run_here("predict.py", DETECTION, "x.pth", *arguments), code, *names)

    def test_tiles(self, tmp_path):
        image = tmp_path / "x.png"
        for arguments, names in (
            (("--tile", 16), ("--tile 16", 32)),
            (("--tile", 64, "--overlap", 64), ("--overlap 64",)),
            (("--tile", 64, "--overlap", -1), ("--overlap -1",)),
            (("--overlap", 8), ("--overlap 8", "--tile")),
            (("--batch-size", 0), ("--batch-size 0", 1)),
        ):
            self.refused("bad-argument", image, *arguments, names=names)

    def test_patterns(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        for name in ("*.jpg", "*", "clip.mp4"):
            self.refused("not-found", tmp_path / name, names=(tmp_path / name,))

    def test_one_bad_file(self, demo_models, tmp_path):
        config, checkpoint = demo_models["segmentation"]
        for name in ("clip.mp4", "scan.tif"):
            (tmp_path / name).write_text("not one")
            outcome = run_here(
                "predict.py", config, checkpoint, tmp_path / name, "--out", tmp_path / "out"
            )
            assert_error(outcome, "bad-image", tmp_path / name)

    def test_a_classifier(self):
        classifier = PerfectDetector()
        classifier.task = "classification"
        with pytest.raises(InputError) as caught:
            TiledPredictor(classifier, 64)
        assert caught.value.code == "unsupported"


# A small process starts the tool: the peak of a process begins with that of who starts it.
MEASURE = """
import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[2], sys.argv[2:]), 0)
with open(sys.argv[1], "w") as file:
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=file)
"""


def peak_of(tool: str, *arguments: object, cwd: Path) -> tuple[int, str, float]:
    """Status, output and peak memory in GiB of a tool in a process of its own."""
    started = [sys.executable, "-c", MEASURE, "peak", *command(tool, *arguments)]
    done = subprocess.run(started, cwd=cwd, capture_output=True, text=True)
    status, peak = (cwd / "peak").read_text().split()
    return int(status), done.stdout + done.stderr, int(peak) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_ten_thousand_pixels_a_side(task, demo_models, tmp_path):
    """In less memory than logits of eight classes, or 30 masks, of the whole image take."""
    config, checkpoint = demo_models[task]
    side = 10_000
    coarse = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.jpg"), image)
    del image
    status, log, peak = peak_of(
        "predict.py", config, checkpoint, "large.jpg", "--tile", 2048, "--batch-size", 2,
        "--score", 0.02, *options(task), cwd=tmp_path,
    )  # fmt: skip
    assert status == 0, log[-2000:]
    assert peak < 3.0
    out = tmp_path / "predictions"
    assert max(Image.open(out / "pictures" / "large.png").size) < 4096 + 400
    if task == "detection":
        coco = json.loads((out / "predictions.json").read_text())
        assert [(row["width"], row["height"]) for row in coco["images"]] == [(side, side)]
        assert len(coco["annotations"]) > 100
        corners = np.array([row["bbox"] for row in coco["annotations"]])[:, :2]
        assert corners.min() < 1000 and corners.max() > 8000
        assert all(row["segmentation"]["size"] == [side, side] for row in coco["annotations"])
        areas = [coco_mask.area(row["segmentation"]) for row in coco["annotations"]]
        assert areas == [row["area"] for row in coco["annotations"]] and max(areas) > 0
    else:
        Image.MAX_IMAGE_PIXELS = None
        labels = np.array(Image.open(out / "labels" / "large.png"))
        assert labels.shape == (side, side) and labels.max() < 8
        for part in (labels[:2000, :2000], labels[-2000:, -2000:]):
            assert len(np.unique(part)) > 1


def test_predictors_of_both_tasks_one_after_another(demo_models):
    """Each is built in its own library's scope, whichever came before and is gone."""
    for task in ("segmentation", "detection", "segmentation", "detection"):
        predictor = Predictor(*demo_models[task])
        assert predictor.task == task and type(predictor.model).__module__.startswith(
            ("backbones.openmmlab.segmentation.sliding_window", "mmdet")
        )
        del predictor
