"""The reader of COCO files against json, and the arithmetic on masks against pycocotools."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from support.odd_data import HEIGHT, WIDTH, Thing, clean_coco

from backbones.errors import InputError
from backbones.openmmlab.data import coco_file
from backbones.openmmlab.data.coco_file import is_coco, read_categories, read_coco, stream
from backbones.openmmlab.data.masks import (
    area_of,
    box_of,
    decode_counts,
    mask_fault,
    tidied,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=9)


def gathered(path) -> dict:
    """A file's content, put together from its rows."""
    content: dict = {}
    for key, number, row in stream(path):
        if number >= 0:
            content.setdefault(key, []).append(row)
        elif row is None:  # the end of a list
            content.setdefault(key, [])
        else:
            content[key] = row
    return content


class TestStream:
    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        content=st.dictionaries(st.text(), VALUES.filter(lambda value: value is not None)),
        piece=st.sampled_from([1, 2, 7, 2**20]),
        indent=st.sampled_from([None, 2]),
        plain=st.booleans(),
    )
    def test_is_what_json_reads(self, content, piece, indent, plain, tmp_path, monkeypatch):
        """However the pieces fall that the file is read in: in a number, a character, a row."""
        monkeypatch.setattr(coco_file, "PIECE", piece)
        path = tmp_path / "content.json"
        text = json.dumps(content, indent=indent, ensure_ascii=plain)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        if "\\ud" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
            return  # half a character, which no file in UTF-8 holds
        assert gathered(path) == content

    def test_cut_off_anywhere(self, tmp_path):
        path = tmp_path / "cut.json"
        text = json.dumps(clean_coco("val")).encode()
        for end in range(0, len(text) - 1, 7):
            path.write_bytes(text[:end])
            for read in (gathered, read_coco, read_categories):
                with pytest.raises(InputError) as caught:
                    read(path)
                assert caught.value.code == "broken-file" and caught.value.where == str(path)

    def test_something_follows(self, tmp_path):
        path = tmp_path / "two.json"
        path.write_text(json.dumps(clean_coco("val")) * 2)
        for read in (gathered, read_coco):
            with pytest.raises(InputError) as caught:
                read(path)
            assert caught.value.code == "broken-file"


def test_categories_need_nothing_that_follows(tmp_path):
    """Of a file of 450 MB its rows are not parsed if the categories come first."""
    path = tmp_path / "long.json"
    head = '{"categories": [{"id": 3, "name": "图\\n"}, {"id": 1, "name": "b"}], "annotations": ['
    path.write_text(head + "not read" * 400_000 + "]}")
    assert read_categories(path) == ["图\n", "b"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (dict(images=[], annotations=[], categories=[]), True),
        (dict(images=[dict(id=1)], categories=[]), True),
        (dict(images=[dict(id=1)]), False),
        (dict(info=dict(images=[], categories=[])), False),
        (dict(images=[dict(id=1)], annotations=[dict(segments_info=[])], categories=[]), False),
        (dict(images=3, annotations="x", categories=None), False),
        ([1, 2], None),
        ("text", None),
    ],
)
def test_what_is_coco(content, expected, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    if expected is None:
        with pytest.raises(InputError):
            is_coco(path)
    else:
        assert is_coco(path) == expected


class TestMasks:
    def masks(self):
        rng = np.random.default_rng(0)
        for i in range(60):
            height, width = rng.integers(1, 90, 2)
            if i % 2:
                yield (rng.random((height, width)) < rng.random()).astype(np.uint8)
            else:
                mask = np.zeros((height, width), np.uint8)
                mask[rng.integers(height) :, rng.integers(width) :] = 1
                yield mask

    def test_run_lengths(self):
        for mask in self.masks():
            code = coco_mask.encode(np.asfortranarray(mask))
            text = code["counts"].decode()
            flat = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            runs = np.diff([0, *edges, flat.size])
            runs = runs if flat[0] == 0 else np.array([0, *runs])
            np.testing.assert_array_equal(decode_counts(text), runs)
            size = mask.shape
            for counts in (text, runs.tolist()):
                sound = dict(size=list(size), counts=counts)
                assert mask_fault(sound, size) == ""
                assert area_of(sound, size) == mask.sum()
                if mask.any():
                    assert box_of(sound, size) == coco_mask.toBbox(code).tolist()
            # A count less or more anywhere fills another number of pixels.
            for i in {*range(min(len(runs), 40)), len(runs) // 2, len(runs) - 1}:
                for other in (-1, 1):
                    wrong = runs.copy()
                    wrong[i] += other
                    assert mask_fault(dict(size=list(size), counts=wrong.tolist()), size)
            assert mask_fault(dict(size=list(size), counts=text[:-1]), size)
            if size[0] != size[1]:
                swapped = dict(size=list(size[::-1]), counts=text)
                assert "swapped" in mask_fault(swapped, size)

    POLYGON = Thing(0, (4, 6, 20, 16)).polygon

    @pytest.mark.parametrize(
        "given, expected",
        [
            (None, None), ([], None), ({}, None), ([[]], None), ([[1, 2, 3, 4]], None),
            ([[], [1, 2]], None),
            (POLYGON, [POLYGON]),
            (np.array(POLYGON).reshape(-1, 2).tolist(), [POLYGON]),
            ([np.array(POLYGON).reshape(-1, 2).tolist()], [POLYGON]),
            ([POLYGON, [], [1, 1]], [POLYGON]),
            ([POLYGON, POLYGON], [POLYGON, POLYGON]),
            ([POLYGON[:-1]], [POLYGON[:-1]]), ([["x"] * 6], [["x"] * 6]), ("mask", "mask"),
        ],
    )  # fmt: skip
    def test_polygons(self, given, expected):
        assert tidied(given) == expected
        if expected and expected != given:
            assert mask_fault(expected, (HEIGHT, WIDTH)) == ""
            assert mask_fault(given, (HEIGHT, WIDTH)) != ""

    def test_boxes_and_areas(self):
        thing = Thing(0, (4, 6, 20, 16))
        assert box_of([thing.polygon], (HEIGHT, WIDTH)) == list(thing.box)
        assert area_of([thing.polygon], (HEIGHT, WIDTH)) == thing.mask.sum() > 100
