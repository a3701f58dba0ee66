"""Published trained models: what is known of them, and downloads that can go wrong."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import yaml
from support.file_server import serving
from support.published import cached, path_of
from support.running import assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config.names import config_files, find_config, published_model
from backbones.weights import TRAINED, find_trained, is_weights, licence_of, read_checkpoint
from backbones.weights.sources import MIRROR, OFFLINE, check_path, resolve

# A small file in the place of a published one: the reader does not ask what network it holds.
MODEL = find_trained("upernet_convnext_t.official")


def saved(path: Path) -> bytes:
    torch.save(dict(state_dict=dict(weight=torch.arange(20_000.0)), meta=dict(epoch=36)), path)
    return path.read_bytes()


def test_all_22_are_here():
    assert len(TRAINED) == len({model.name for model in TRAINED}) == 22
    assert len({model.source for model in TRAINED}) == 22
    assert {model.config for model in TRAINED} <= {*config_files()}
    by = {p: [m for m in TRAINED if m.publisher == p] for p in ("official", "openmmlab")}
    assert {p: len(models) for p, models in by.items()} == {"official": 13, "openmmlab": 9}
    assert {m.licence for m in by["official"]} == {"MIT"}
    assert {m.licence for m in by["openmmlab"]} == {"Apache-2.0"}
    assert all(m.sha256 is None for m in by["official"])
    assert all(len(m.sha256) == 8 for m in by["openmmlab"])


def test_openmmlabs_are_those_of_their_wheels():
    """Address, scores and crop, from the metafiles that mmdet and mmseg carry."""
    theirs = {}
    for package in ("mmdet", "mmseg"):
        folder = Path(find_spec(package).origin).parent / ".mim" / "configs" / "convnext"
        (file,) = folder.glob("metafile.y*ml")
        for entry in yaml.safe_load(file.read_text())["Models"]:
            results = entry["Results"]
            metrics = {}
            for result in results if isinstance(results, list) else [results]:
                metrics |= {f"{result['Task']} {k}": v for k, v in result["Metrics"].items()}
            theirs[entry["Weights"]] = sorted(metrics.values())
    for model in (m for m in TRAINED if m.publisher == "openmmlab"):
        assert theirs.pop(model.source) == sorted(model.scores.values())
    assert not theirs


def test_scores_of_the_official_ones_are_those_of_the_configs():
    for model in (m for m in TRAINED if m.publisher == "official"):
        claim = config_files()[model.config].read_text().splitlines()[0]
        for value in model.scores.values():
            assert f"{value:.1f}" in claim, model.name


def test_publishers_of_one_config_are_told_apart():
    assert find_trained("cascade_convnext_t").publisher == "official"
    other = find_trained("cascade_convnext_t.openmmlab")
    assert (other.publisher, other.config) == ("openmmlab", "cascade_convnext_t")
    assert find_config(other.name) == find_config("cascade_convnext_t")
    assert published_model(other.name) is other
    assert published_model(find_config("cascade_convnext_t")).publisher == "official"
    assert other.name in find_trained("cascade_convnext_t").line()
    assert "MIT" in find_trained("cascade_convnext_t").line()


def test_a_config_without_a_published_model(tmp_path):
    for given in ("upernet_convnext_t_80k", tmp_path / "cascade_convnext_t.py"):
        if isinstance(given, Path):
            given.write_text("x = 1\n")  # the user's own, whatever it is called
        with pytest.raises(InputError) as caught:
            published_model(given)
        assert (caught.value.code, caught.value.where) == ("not-found", str(given))


def test_names_are_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("cascade_convnext_t") == find_trained("cascade_convnext_t").source
    check_path("cascade_convnext_t.openmmlab")
    assert is_weights("cascade_convnext_t") and not is_weights("photo.jpg")
    Path("cascade_convnext_t").touch()
    assert resolve("cascade_convnext_t") == "cascade_convnext_t"  # a file of that name comes first
    with pytest.raises(InputError, match="cascade_convnext_s") as caught:
        check_path("cascade_convnext_ss")
    assert caught.value.code == "not-found"


def test_each_publishers_file_is_fetched_from_its_own_address(mirror, tmp_path):
    """The config's name alone is the first publisher's."""
    official, other = (find_trained(f"upernet_convnext_t.{p}") for p in ("official", "openmmlab"))
    mirror.files[path_of(official.source)] = saved(tmp_path / "a.pth")
    assert read_checkpoint("upernet_convnext_t")["meta"] == dict(epoch=36)
    with pytest.raises(InputError) as caught:
        read_checkpoint(other.name)
    assert caught.value.where == f"{mirror.address}{path_of(other.source)}"
    assert cached(tmp_path) == [Path(official.source).name]


def test_licence():
    assert licence_of("cascade_convnext_t") == licence_of(MODEL.source) == "MIT"
    copy = "weights/" + Path(find_trained("cascade_convnext_s.openmmlab").source).name
    assert licence_of(copy) == "Apache-2.0"
    assert licence_of("work_dirs/cascade_convnext_t/epoch_36.pth") is None
    assert licence_of("work_dirs/cascade_convnext_t.pth") is None


def test_the_zoo_lists_them():
    rows = json.loads(run_here("zoo.py", "--trained", "--json").out)
    assert [row["name"] for row in rows] == [model.name for model in TRAINED]
    outcome = run_here("zoo.py", "cascade_convnext_t.openmmlab")
    assert "50.3 box AP" in outcome.out and "Apache-2.0" in outcome.out
    assert "official" not in outcome.out.splitlines()[1]


class TestDownloads:
    def test_once(self, mirror, tmp_path):
        mirror.files[path_of(MODEL.source)] = saved(tmp_path / "a.pth")
        for _ in range(2):
            weight = read_checkpoint("upernet_convnext_t")["state_dict"]["weight"]
            assert torch.equal(weight, torch.arange(20_000.0))
        assert mirror.asked == [(path_of(MODEL.source), 0)]
        assert cached(tmp_path) == [Path(MODEL.source).name]

    def test_cut_off_again_and_again(self, mirror, tmp_path):
        """The rest is asked for, in one run and in the next."""
        mirror.files[path_of(MODEL.source)] = content = saved(tmp_path / "a.pth")
        mirror.cuts = [30_000, 20_000] + 6 * [0]
        with pytest.raises(InputError) as caught:
            read_checkpoint(MODEL.name)
        assert caught.value.code == "download-failed"
        assert cached(tmp_path) == [f"{Path(MODEL.source).name}.part"]
        mirror.cuts = [10_000]
        assert read_checkpoint(MODEL.name)["meta"] == dict(epoch=36)
        assert [first for _, first in mirror.asked][:3] == [0, 30_000, 50_000]
        assert [first for _, first in mirror.asked][-1] == 60_000 < len(content)
        assert cached(tmp_path) == [Path(MODEL.source).name]

    @pytest.mark.parametrize("wrong", ["login", "cut", "bit", "other"])
    def test_a_wrong_file_is_refused_and_not_kept(self, mirror, tmp_path, wrong):
        content = saved(tmp_path / "a.pth")
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        model = find_trained("cascade_convnext_t.openmmlab") if wrong == "other" else MODEL
        mirror.files[path_of(model.source)] = {
            "login": b"<!DOCTYPE html><html>please log in</html>",
            "cut": content[:-5000],
            "bit": bytes(flipped),
            "other": content,  # whole, but not what the digits in the name promise
        }[wrong]
        with pytest.raises(InputError) as caught:
            read_checkpoint(model.name)
        assert caught.value.code == "broken-file" and "\n" not in str(caught.value)
        assert cached(tmp_path) == []

    def test_no_such_file(self, mirror, tmp_path):
        with pytest.raises(InputError, match="404") as caught:
            read_checkpoint(MODEL.name)
        assert caught.value.code == "download-failed"
        assert str(tmp_path / "torch") in str(caught.value)  # where to put it
        assert cached(tmp_path) == []

    def test_offline(self, mirror, tmp_path, monkeypatch):
        mirror.files[path_of(MODEL.source)] = saved(tmp_path / "a.pth")
        monkeypatch.setenv(OFFLINE, "1")
        with pytest.raises(InputError) as caught:
            read_checkpoint(MODEL.name)
        parts = urlparse(MODEL.source)
        place = tmp_path / "torch" / "hub" / "checkpoints" / parts.netloc / parts.path[1:]
        assert caught.value.code == "download-failed" and str(place) in str(caught.value)
        assert not mirror.asked
        place.parent.mkdir(parents=True)
        place.write_bytes((tmp_path / "a.pth").read_bytes())
        assert read_checkpoint(MODEL.name)["meta"] == dict(epoch=36)

    def test_no_server(self, tmp_path, monkeypatch, mirror):
        with serving() as gone:
            monkeypatch.setenv(MIRROR, gone.address)
        with pytest.raises(InputError) as caught:
            read_checkpoint(MODEL.name)
        assert caught.value.code == "download-failed" and str(tmp_path) in str(caught.value)

    def test_a_cache_that_cannot_be_written(self, mirror, tmp_path):
        mirror.files[path_of(MODEL.source)] = saved(tmp_path / "a.pth")
        (tmp_path / "torch").write_text("a file where the folder should be")
        with pytest.raises(InputError) as caught:
            read_checkpoint(MODEL.name)
        assert caught.value.code == "write-failed" and not mirror.asked


def test_bad_options_of_the_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv(OFFLINE, "")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"")
    outcome = run_here("predict.py", "upernet_convnext_t_80k", photo)
    assert_error(outcome, "not-found", "upernet_convnext_t_80k", "convnext zoo --trained")
    assert_error(run_here("predict.py", "upernet_convnext_t", "x.pth"), "bad-argument", "x.pth")
    outcome = run_here("predict.py", "upernet_convnxt_t", photo)
    assert_error(outcome, "unknown-name", "upernet_convnext_t")
    assert os.listdir(tmp_path) == ["photo.jpg"]
