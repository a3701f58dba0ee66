"""Panoptic predictions: what they hold, how they are drawn, written and converted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from backbones import InputError
from backbones.openmmlab.prediction.drawing import draw_segments
from backbones.openmmlab.prediction.predictions import PredictionFiles, summary
from backbones.openmmlab.prediction.result import Result
from backbones.openmmlab.prediction.segments import OFFSET, Segments

CLASSES = ("cat", "dog", "grass")
PALETTE = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


def sample() -> BaseDataElement:
    """Two dogs on grass, and a corner that is nothing."""
    values = torch.full((1, 40, 60), 2, dtype=torch.int32)
    values[0, 5:20, 5:20] = 1 + 1 * OFFSET
    values[0, 20:35, 30:55] = 1 + 2 * OFFSET
    values[0, :4, :4] = len(CLASSES)
    made = BaseDataElement()
    made.pred_panoptic_seg = PixelData(sem_seg=values)
    return made


def result() -> Result:
    return Result(np.full((40, 60, 3), 90, np.uint8), sample(), CLASSES, PALETTE)


def test_the_offset_is_mmdets():
    from mmdet.structures import INSTANCE_OFFSET

    assert OFFSET == INSTANCE_OFFSET


def test_segments_are_numbered_with_their_classes():
    found = result().found
    assert isinstance(found, Segments)
    assert found.labels.tolist() == [2, 1, 1]
    values = sample().pred_panoptic_seg.sem_seg[0].numpy()
    expected = np.where(values < len(CLASSES) + 1, 1, np.where(values < 2 * OFFSET, 2, 3))
    assert (found.numbers == np.where(values == len(CLASSES), 0, expected)).all()
    expected = values % OFFSET
    assert (found.label_map == np.where(expected == len(CLASSES), -1, expected)).all()
    assert summary(found, 0.5) == "3 segments"


def test_zeros_are_void_after_mmdets_metric():
    made = sample()
    made.pred_panoptic_seg.sem_seg[made.pred_panoptic_seg.sem_seg == len(CLASSES)] = 0
    assert Segments.of(made, len(CLASSES)).labels.tolist() == [0, 2, 1, 1]
    found = Segments.of(made, len(CLASSES), has_void_zeros=True)
    assert (found.numbers == result().found.numbers).all()


def test_coco_rows_are_those_of_the_picture():
    row, picture = result().to_coco_panoptic(image_id=7)
    colours = np.asarray(picture).astype(int)
    numbers = colours @ [1, 256, 65_536]
    assert row["image_id"] == 7 and row["file_name"] == "7.png"
    segments = {s["id"]: (s["category_id"], s["area"]) for s in row["segments_info"]}
    counted = {int(n): int((numbers == n).sum()) for n in np.unique(numbers) if n}
    assert {n: area for n, (_, area) in segments.items()} == counted
    assert [segments[n][0] for n in sorted(segments)] == [3, 2, 2]
    with pytest.raises(InputError) as caught:
        result().to_coco()
    assert caught.value.code == "unsupported"


def test_drawing_colours_every_segment_by_its_class():
    drawn = np.asarray(result().drawn()).astype(int)
    plain = draw_segments(
        np.full((40, 60, 3), 90, np.uint8),
        Segments(np.zeros((40, 60), np.int32), np.zeros(0, int)),
        CLASSES,
        PALETTE,
    )
    assert drawn.shape == np.asarray(plain).shape
    zoom = drawn.shape[0] // 40
    for (y, x), label in (((17, 8), 1), ((32, 33), 1), ((37, 10), 2)):  # beside the tags
        colour = drawn[y * zoom, x * zoom]
        assert colour.argmax() == PALETTE[label].argmax(), (y, x)
    assert (drawn[2 * zoom, 2 * zoom] == 90).all()  # nothing there
    assert (np.asarray(plain) == 90).all()


def test_files_hold_coco_panoptic_annotations(tmp_path):
    predictor = SimpleNamespace(classes=CLASSES, palette=PALETTE, task="detection")
    files = PredictionFiles(tmp_path, predictor, 0.5)
    seen = result()
    files.add_image(tmp_path / "field.jpg", "field", seen.image, seen.found)
    files.finish()
    written = json.loads((tmp_path / "panoptic.json").read_text())
    assert [c["name"] for c in written["categories"]] == list(CLASSES)
    (row,) = written["annotations"]
    assert row["file_name"] == "field.png" and len(row["segments_info"]) == 3
    numbers = np.asarray(Image.open(tmp_path / "panoptic" / "field.png"))[:, :, 0]
    assert (numbers == seen.found.numbers).all()
    assert Image.open(tmp_path / "pictures" / "field.png").size == seen.drawn().size
    assert not (tmp_path / "predictions.json").exists()
