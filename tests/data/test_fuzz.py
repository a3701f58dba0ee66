"""Whatever a stranger supplies is refused in one line: no traceback, no hang, nothing run.

`hostile_inputs.py` keeps the inputs that were found; hypothesis changes sound ones here and there,
and `tests/fuzz/` looks for more by coverage.
"""

import argparse
import io
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import hostile_inputs as hostile
from support.hanging import in_time
from support.running import DETECTION, SEGMENTATION, run_here
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.command_line import Overrides
from backbones.openmmlab.data.coco_annotations import CocoAnnotations
from backbones.openmmlab.data.decoding import image_size
from backbones.openmmlab.data.formats import coco
from backbones.openmmlab.data.image_files import read_headers
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.data.label_folders import ClassList, label_rule, values_in
from backbones.openmmlab.data.label_maps import LabelMaps
from backbones.openmmlab.data.loading import LoadImage
from backbones.weights import load_pretrained, load_strictly, read_checkpoint

SECONDS = 10  # a reader that takes longer hangs: every input here is tiny


@contextmanager
def refused(name: str = "") -> Iterator[None]:
    """The block ends in one line that names the file."""
    with in_time(SECONDS), pytest.raises(InputError) as error:
        yield
    assert str(error.value).strip() and "\n" not in str(error.value).strip()
    assert name in str(error.value)


def unchanged(model: nn.Module, before: dict) -> None:
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def names(files: dict) -> list[str]:
    return sorted(files)


MARK = Path("executed")
CHECKPOINTS = hostile.checkpoints(MARK)
ANNOTATIONS = hostile.annotations()
IMAGES = hostile.images()
LABEL_MAPS = hostile.label_maps()


def test_there_are_enough():
    kept = (CHECKPOINTS, ANNOTATIONS, IMAGES, LABEL_MAPS, hostile.OPTIONS)
    assert sum(map(len, kept)) >= 200
    assert all(len(content) < 300_000 for files in kept[:4] for content in files.values())


class TestCheckpoints:
    @pytest.mark.parametrize("name", names(CHECKPOINTS))
    @pytest.mark.filterwarnings("ignore")
    def test_refused(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # where a payload would leave its mark
        path = tmp_path / name
        path.write_bytes(CHECKPOINTS[name])
        model = hostile.network()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with refused(name):
            load_pretrained(model, path)
        unchanged(model, before)
        with refused(name):
            load_strictly(model, read_checkpoint(path), path)
        unchanged(model, before)
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_sound_ones_are_taken(self, tmp_path):
        """What the hostile ones are changed from; and a payload does run where it is trusted."""
        model = hostile.network()
        path = tmp_path / "whole.pth"
        path.write_bytes(hostile.saved(model.state_dict()))
        load_pretrained(model, path)
        mark = tmp_path / "mark"
        for name, payload in hostile.payloads(mark).items():
            if name not in ("getattr", "import"):
                path.write_bytes(hostile.saved(dict(meta=payload, **model.state_dict())))
                read_checkpoint(path, trust=True)
                assert mark.exists() or mark.with_suffix(".npy").exists(), name
                mark.is_dir() and mark.rmdir()
                mark.unlink(missing_ok=True)
                mark.with_suffix(".npy").unlink(missing_ok=True)

    @pytest.mark.parametrize("ending", ["pth", "safetensors", "pickle.pth"])
    def test_changed_anywhere(self, ending, tmp_path):
        weights = hostile.network().state_dict()
        if ending == "safetensors":
            whole = hostile.save({k: v.contiguous() for k, v in weights.items()})
        else:
            file = io.BytesIO()
            zipped = ending == "pth"
            torch.save(weights, file, _use_new_zipfile_serialization=zipped)
            whole = file.getvalue()
        path = tmp_path / f"changed.{ending}"

        @settings(
            max_examples=40, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(changes(len(whole)))
        def change(edits):
            path.write_bytes(applied(whole, edits))
            model = hostile.network()
            with in_time(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    load_pretrained(model, path)
                except InputError as error:
                    assert path.name in str(error)
                    return
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters())

        change()


def changes(length: int) -> st.SearchStrategy:
    """Bytes replaced, mostly near the beginning and the end, where a format has its structure."""
    places = st.one_of(
        st.integers(0, min(length, 400) - 1),
        st.integers(max(0, length - 400), length - 1),
        st.integers(0, length - 1),
    )
    edit = st.tuples(places, st.integers(0, 20), st.binary(max_size=20))
    return st.lists(edit, min_size=1, max_size=3)


def applied(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, inserted in edits:
        content = content[:place] + inserted + content[place + removed :]
    return content


def findings_of(path: Path) -> list[Issue]:
    return list(CocoAnnotations(path, hostile.CLASSES).check(with_mask=True))


class TestAnnotations:
    @pytest.mark.parametrize("name", names(ANNOTATIONS))
    def test_refused_or_found(self, name, tmp_path):
        path = tmp_path / "annotations.json"
        path.write_bytes(ANNOTATIONS[name])
        with in_time(SECONDS):
            try:
                found = findings_of(path)
            except InputError as error:
                assert "annotations.json" in str(error) and "\n" not in str(error)
                return
        assert any(issue.severity != "note" for issue in found)

    def test_sound_one_is_taken(self, tmp_path):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(hostile.coco()))
        assert findings_of(path) == []
        Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
        assert coco.read(tmp_path, path).as_is

    @pytest.mark.parametrize("name", names(ANNOTATIONS))
    def test_own_data(self, name, tmp_path):
        """Read as somebody's own folder: what it does not refuse, the doctor has found."""
        path = tmp_path / "annotations.json"
        path.write_bytes(ANNOTATIONS[name])
        Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
        with in_time(SECONDS):
            try:
                coco.read(tmp_path, path)
            except InputError as error:
                assert "\n" not in str(error)

    @settings(
        max_examples=80, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def test_any_value_anywhere(self, data, tmp_path_factory):
        content = hostile.coco()
        rows = content[data.draw(st.sampled_from(list(content)))]
        row = data.draw(st.sampled_from(rows))
        leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        values = st.recursive(
            leaves, lambda x: st.lists(x, max_size=8) | st.dictionaries(st.text(max_size=5), x)
        )
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(values)
        path = tmp_path_factory.mktemp("any") / "annotations.json"
        path.write_text(json.dumps(content))
        for read in (findings_of, lambda p: coco.read(p.parent, p)):
            with in_time(SECONDS):
                try:
                    read(path)
                except InputError as error:
                    assert "\n" not in str(error)


class TestImages:
    @pytest.mark.parametrize("name", names(IMAGES))
    def test_refused(self, name, tmp_path):
        path = tmp_path / "picture.jpg"
        path.write_bytes(IMAGES[name])
        with refused("picture.jpg"):
            LoadImage().transform(dict(img_path=str(path)))
        with in_time(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_headers([path])  # it does not decode: that it does not crash is all
            try:
                image_size(path)
            except InputError as error:
                assert "picture.jpg" in str(error)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_changed_anywhere(self, kind, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = (np.arange(24 * 24 * 3) % 251).reshape(24, 24, 3).astype(np.uint8)
        whole = hostile.encoded(pixels, kind, exif=exif)
        path = tmp_path / "changed.jpg"

        @settings(
            max_examples=40, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(changes(len(whole)))
        def change(edits):
            path.write_bytes(applied(whole, edits))
            with in_time(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_headers([path])
                check_label_map(path, (24, 24))
                for read in (image_size, lambda p: LoadImage().transform(dict(img_path=str(p)))):
                    try:
                        read(path)
                    except InputError as error:
                        assert "changed.jpg" in str(error)

        change()


def check_label_map(path: Path, size: tuple[int, int]) -> list[Issue]:
    image = path.parent / "image.png"
    Image.new("RGB", size).save(image)
    headers, _ = read_headers([image])
    maps = LabelMaps([(image, path)], hostile.CLASSES, False, "train_dataloader.dataset", True)
    found = list(maps.check(headers, training=True))
    try:
        label_rule(
            values_in([(image, path)], False), ClassList(Path("classes.txt"), list(hostile.CLASSES))
        )
    except InputError as error:
        assert path.name in str(error)
    return found


class TestLabelMaps:
    @pytest.mark.parametrize("name", names(LABEL_MAPS))
    @pytest.mark.filterwarnings("ignore")
    def test_found(self, name, tmp_path):
        path = tmp_path / "labels.png"
        path.write_bytes(LABEL_MAPS[name])
        with in_time(SECONDS):
            found = check_label_map(path, (48, 40))
        assert any(f.severity == "error" and "labels.png" in f.where for f in found), found

    def test_sound_one_is_taken(self, tmp_path):
        labels = (np.arange(40 * 48) % 2).reshape(40, 48).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels.png")
        assert check_label_map(tmp_path / "labels.png", (48, 40)) == []


def overridden(config: Path, option: str) -> None:
    namespace = argparse.Namespace()
    action = Overrides(["--cfg-options"], "cfg_options")
    action(argparse.ArgumentParser(), namespace, [option])
    load_config(config, namespace.cfg_options)


class TestOptions:
    @pytest.mark.parametrize("option", hostile.OPTIONS, ids=lambda option: repr(option)[:40])
    def test_refused(self, option):
        with refused():
            overridden(SEGMENTATION, option)

    @pytest.mark.parametrize(
        "option",
        ["model.backbone.out_indices=5", "model.backbone.out_indices=[0,9]",
         "model.decode_head.in_index=[0,9]", "model.auxiliary_head.in_index=9",
         "model.backbone.step=resnet9"],
    )  # fmt: skip
    def test_widths_follow_the_backbone(self, option):
        """In a config whose widths are asked of the backbone."""
        with refused():
            overridden(SEGMENTATION.with_name("upernet_roadmap.py"), option)

    def test_in_the_tool(self):
        for option in ("model", "model=3"):
            outcome = run_here("train.py", DETECTION, "--cfg-options", option)
            assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        st.lists(
            st.sampled_from(
                ["model", "backbone", "type", "arch", "decode_head", "train_cfg", "0", "-1", "lr",
                 "optim_wrapper", "optimizer", "custom_hooks", "param_scheduler", "in_index",
                 "in_channels", "train_dataloader", "dataset", "pipeline", "out_indices", "depths"]
            ) | st.text(max_size=4),
            min_size=1,
            max_size=5,
        ).map(".".join),
        st.sampled_from(["None", "True", "3", "-1", "1e400", "nan", "x", "[]", "(1,a)", "((", "="])
        | st.text(max_size=6),
    )  # fmt: skip
    def test_any_value_anywhere(self, key, value):
        with in_time(SECONDS):
            try:
                overridden(SEGMENTATION, f"{key}={value}")
            except InputError as error:
                assert not re.search(r"\n\s*\S", str(error))
