"""Weights enter completely, from every layout known here, or not at all."""

import functools
import hashlib
import json
import logging
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS
from safetensors.torch import save, save_file
from support.oracles import import_mmpretrain, randomise

from backbones import ConvNeXt, ConvNeXtClassifier, InputError
from backbones.weights import adapt_stem, load_pretrained, load_strictly, read_checkpoint, trusted

NARROW = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))
V1 = dict(arch=NARROW, layer_scale_init_value=1.0)
V2 = dict(arch=NARROW, use_grn=True)


def build(path: Path, **arguments) -> ConvNeXt:
    """As mmengine does it: build from a config, then carry out init_cfg."""
    config = dict(type="ConvNeXt", init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    network = MODELS.build(config | arguments)
    network.init_weights()
    return network


def assert_same(loaded: ConvNeXt, source: torch.nn.Module) -> None:
    wanted = source.state_dict()
    for name, tensor in loaded.state_dict().items():
        if not re.match(r"norm\d", name):
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("arguments", [V1, V2], ids=["v1", "v2"])
class TestLayouts:
    def test_official_classifier(self, arguments, tmp_path):
        source = randomise(ConvNeXtClassifier(num_classes=5, **arguments))
        torch.save(dict(model=source.state_dict()), tmp_path / "official.pth")
        network = build(tmp_path / "official.pth", **arguments)
        assert_same(network, source)
        # As in their own detector: the classifier's norm is for pooled maps.
        assert torch.equal(network.norm3.weight, torch.ones(20))

    def test_mmpretrain_classifier(self, arguments, tmp_path):
        """A file that mmpretrain itself writes, GRN as (4C,), its final norm called norm3."""
        use_grn = arguments is V2
        theirs = import_mmpretrain().ConvNeXt(
            dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 20]),
            use_grn=use_grn,
            layer_scale_init_value=1.0 - use_grn,
        )
        randomise(theirs)
        state = {f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
        state["head.fc.weight"] = torch.randn(5, 20)
        torch.save(dict(state_dict=state, meta=dict(epoch=3)), tmp_path / "mm.pth")
        network = build(tmp_path / "mm.pth", out_indices=(0, 3), **arguments).eval()
        x = torch.randn(2, 3, 64, 64)
        theirs.gap_before_final_norm = False
        theirs.eval()
        with torch.no_grad():
            (expected,) = theirs(x)
            torch.testing.assert_close(network(x)[1], expected, rtol=0, atol=1e-5)
        if use_grn:
            assert network.stages[0][0].grn.gamma.abs().sum() > 0
        assert torch.equal(network.norm0.weight, torch.ones(8))

    def test_whole_detector_of_ours(self, arguments, tmp_path):
        source = randomise(ConvNeXt(**arguments))
        state = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
        state["neck.lateral.weight"] = torch.randn(3, 3)
        history = dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))
        torch.save(
            dict(state_dict=state, message_hub=dict(log_scalars=history)), tmp_path / "ours.pth"
        )
        network = build(tmp_path / "ours.pth", **arguments)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name]), name

    def test_coverage_says_what_happened(self, arguments, tmp_path):
        source = randomise(ConvNeXtClassifier(num_classes=5, **arguments))
        torch.save(source.state_dict(), tmp_path / "bare.pth")
        network = ConvNeXt(**arguments, out_indices=(0, 2))
        coverage = load_pretrained(network, tmp_path / "bare.pth")
        built = [n for n in network.state_dict() if not n.startswith("norm")]
        assert sorted(coverage.loaded) == sorted(built)
        assert set(coverage.ignored) >= {"norm.weight", "head.weight", "stages.3.0.dwconv.weight"}
        assert set(coverage.initial) == {f"norm{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
        assert "official layout" in str(coverage)
        assert "stages.3 (not in out_indices), norm, head (a classifier's); not" in str(coverage)
        assert "left at their initial value: norm0, norm2 (a classifier has no" in str(coverage)


@pytest.mark.parametrize(
    "name, licence",
    [
        ("convnextv2_tiny_1k_224_ema.pt", "licence CC-BY-NC-4.0, not for commercial use"),
        ("convnext_tiny_1k_224.pth", "licence MIT"),
        ("my_convnextv2_copy.pth", "V2 weights are CC-BY-NC 4.0, not for commercial use"),
    ],
)
def test_licence_is_shown_at_load(name, licence, tmp_path):
    torch.save(dict(model=ConvNeXtClassifier(**V1).state_dict()), tmp_path / name)
    assert licence in str(load_pretrained(ConvNeXt(**V1), tmp_path / name))


class TestRefusals:
    """One fault at a time, each named in one line, and the model left as it was."""

    def refused(
        self, state: object, tmp_path: Path, words: str, code: str = "", **arguments
    ) -> None:
        path = tmp_path / "faulty.pth"
        torch.save(state, path)
        network = ConvNeXt(**(arguments or V1))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(InputError, match=words) as caught:
            load_pretrained(network, path)
        assert caught.value.code == (code or "checkpoint-mismatch")
        assert caught.value.where == str(path) and "faulty.pth" in str(caught.value)
        assert "\n" not in str(caught.value)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def state(self, **arguments) -> dict:
        return randomise(ConvNeXtClassifier(num_classes=5, **(arguments or V1))).state_dict()

    def test_missing_tensor(self, tmp_path):
        state = self.state()
        del state["stages.2.1.pwconv1.bias"]
        self.refused(state, tmp_path, "stages.2.1.pwconv1.bias")

    def test_transposed_tensor(self, tmp_path):
        state = self.state()
        state["stages.0.0.pwconv1.weight"] = state["stages.0.0.pwconv1.weight"].T
        self.refused(state, tmp_path, r"pwconv1\.weight.*\(8, 32\).*\(32, 8\)")

    def test_unknown_tensor(self, tmp_path):
        state = self.state() | {"stages.0.0.attention.weight": torch.ones(2)}
        self.refused(state, tmp_path, "stages.0.0.attention.weight")

    def test_missing_grn(self, tmp_path):
        state = self.state(**V2)
        del state["stages.1.0.grn.gamma"]
        self.refused(state, tmp_path, "stages.1.0.grn.gamma", **V2)

    def test_missing_output_norm_of_a_detector(self, tmp_path):
        state = {f"backbone.{k}": v for k, v in ConvNeXt(**V1).state_dict().items()}
        del state["backbone.norm1.bias"]
        self.refused(state, tmp_path, "norm1.bias")

    def test_other_architecture(self, tmp_path):
        self.refused(
            self.state(), tmp_path, r"depths \(1, 1, 2, 1\).*depths \(2, 2, 6, 2\)", arch="atto"
        )

    def test_other_version(self, tmp_path):
        self.refused(self.state(**V2), tmp_path, "V2.*use_grn=True")
        self.refused(self.state(), tmp_path, "V1.*use_grn=False", **V2)

    def test_no_convnext(self, tmp_path):
        self.refused(
            {"layer1.0.conv1.weight": torch.ones(1)},
            tmp_path,
            "layer1.0.conv1.weight",
            "unknown-layout",
        )

    def test_two_backbones(self, tmp_path):
        state = {f"{who}.{k}": v for k, v in self.state().items() for who in ("teacher", "student")}
        self.refused(state, tmp_path, "prefix=.*'teacher.', 'student.'", "unknown-layout")
        network = ConvNeXt(**V1)
        load_pretrained(network, tmp_path / "faulty.pth", prefix="student.")
        assert torch.equal(network.stages[0][0].gamma, state["student.stages.0.0.gamma"])

    def test_wrong_prefix(self, tmp_path):
        torch.save(self.state(), tmp_path / "x.pth")
        with pytest.raises(InputError, match="'backbone.'.*downsample_layers") as caught:
            load_pretrained(ConvNeXt(**V1), tmp_path / "x.pth", prefix="backbone.")
        assert caught.value.code == "unknown-layout"

    def test_no_weights_at_all(self, tmp_path):
        self.refused(dict(epoch=3), tmp_path, "epoch", "unknown-layout")
        self.refused([1, 2], tmp_path, "list", "unknown-layout")

    def test_unknown_init_cfg_argument(self, tmp_path):
        network = ConvNeXt(**V1, init_cfg=dict(type="Pretrained", checkpoint="x", strict=True))
        with pytest.raises(TypeError, match="strict"):
            network.init_weights()


@pytest.fixture
def warned():
    """Warnings that mmengine's current logger gets, which passes none on."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


class TestReading:
    def refused(self, path: Path, code: str = "broken-file", words: str = "") -> None:
        with pytest.raises(InputError, match=words) as caught:
            read_checkpoint(path)
        assert (caught.value.code, caught.value.where) == (code, str(path))
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing_and_empty(self, tmp_path):
        self.refused(tmp_path / "none.pth", "not-found")
        (tmp_path / "empty.pth").touch()
        self.refused(tmp_path / "empty.pth")

    def test_web_page(self, tmp_path):
        path = tmp_path / "page.pth"
        path.write_text("<!DOCTYPE html><html>Not found</html>")
        self.refused(path, words="web page")

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
    @pytest.mark.parametrize("write", [torch.save, save_file])
    def test_cut_off(self, tmp_path, share, write):
        path = tmp_path / f"whole.{'safetensors' if write is save_file else 'pth'}"
        write(ConvNeXt(**V1).state_dict(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        self.refused(path)

    def test_other_things_than_checkpoints(self, tmp_path):
        for content, words in (
            (b"\xef\xbb\xbf  <html><body>Sign in</body>", "web page"),
            (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
            (b"<Error><Code>NoSuchKey</Code></Error>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
            (b'{"error": "Repository not found"}', "PyTorch"),
            (b"PK\x03\x04 and nothing more", "PyTorch"),
            (os.urandom(5000), "PyTorch"),
            (pickle.dumps([1, 2, 3]), "PyTorch"),
            (pickle.dumps([1, 2, 3], protocol=2), "PyTorch"),
            (struct.pack("<Q", 2**62) + b'{"a": 1}' * 9, "safetensors"),
        ):
            (tmp_path / "thing.pth").write_bytes(content)
            self.refused(tmp_path / "thing.pth", words=words)
        self.refused(tmp_path, "not-found")

    def test_zip_that_unpacks_to_more_than_itself(self, tmp_path):
        """PyTorch would allocate whatever such an archive declares."""
        path = tmp_path / "bomb.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb/data.pkl", b"\0" * 50_000_000)
        assert path.stat().st_size < 100_000
        self.refused(path)
        torch.save({"weight": torch.ones(1000)}, path)
        content = bytearray(path.read_bytes())
        for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the size unpacked
            at = content.find(b"data/0", content.find(magic)) if magic == b"PK\x01\x02" else 0
            at = content.rfind(magic, 0, at) if at else content.find(magic)
            content[at + offset - 4 : at + offset + 4] = struct.pack("<II", 2**31, 2**31)
        path.write_bytes(content)
        self.refused(path)

    def test_safetensors_with_wrong_sizes(self, tmp_path):
        path = tmp_path / "wrong.safetensors"
        save_file({"weight": torch.ones(10)}, path)
        path.write_bytes(path.read_bytes().replace(b"[10]", b"[99]"))
        self.refused(path)

    @pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 5"])
    def test_code_is_not_run(self, tmp_path, kind):
        class Malicious:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "executed"),))

        path = tmp_path / "malicious.pth"
        if kind.startswith("pickle"):
            path.write_bytes(pickle.dumps(dict(model=Malicious()), protocol=int(kind[-1])))
        else:
            torch.save(dict(model=Malicious()), path, _use_new_zipfile_serialization=kind == "zip")
        self.refused(path, "unsafe-checkpoint", r"posix\.mkdir")
        assert not (tmp_path / "executed").exists()
        with trusted():  # the user's own decision, and the proof that the file is live
            try:
                read_checkpoint(path)
            except InputError:
                assert kind.startswith("pickle")  # no checkpoint, even where it may run
        assert (tmp_path / "executed").exists()
        (tmp_path / "executed").rmdir()
        self.refused(path, "unsafe-checkpoint")
        assert not (tmp_path / "executed").exists()

    def test_threads_read_at_once(self, tmp_path):
        """PyTorch keeps what it may load for the whole process."""
        torch.save(dict(log=HistoryBuffer([1.0, 2.0], [1, 1])), tmp_path / "history.pth")
        with ThreadPoolExecutor(8) as threads:
            reads = list(threads.map(read_checkpoint, [tmp_path / "history.pth"] * 200))
        assert [read["log"].mean() for read in reads] == [1.5] * 200

    def test_getattr_reaches_nothing_but_statistics(self, tmp_path):
        """mmengine's log history needs getattr; its globals would open every door."""
        history = dict(log=HistoryBuffer([1.0, 2.0], [1, 1]))
        torch.save(history, tmp_path / "history.pth")
        read = read_checkpoint(tmp_path / "history.pth")["log"]
        assert read.mean() == 1.5 and isinstance(read, HistoryBuffer)

        marker = tmp_path / "executed"
        marked = f"__import__('os').mkdir({str(marker)!r})"

        class Attribute:
            def __init__(self, owner, *names):
                self.owner, self.names = owner, names

            def __reduce__(self):
                owner = Attribute(self.owner, *self.names[:-1]) if self.names[1:] else self.owner
                return (getattr, (owner, self.names[-1]))

        class Call:
            def __init__(self, function, *arguments):
                self.function, self.arguments = function, arguments

            def __reduce__(self):
                return (self.function, self.arguments)

        for content in (
            Attribute(HistoryBuffer, "mean", "__globals__"),
            Attribute(HistoryBuffer, "__init__", "__globals__", "get"),
            Attribute(HistoryBuffer, "__class__"),
            Call(eval, marked),
            Call(functools.partial, eval, marked),
            Call(getattr, type(tmp_path), "mkdir"),  # a path may be read, its methods not
            eval,
        ):
            torch.save(dict(state_dict=content), tmp_path / "attack.pth")
            self.refused(tmp_path / "attack.pth", "unsafe-checkpoint", "builtins|functools|eval")
        # What getattr does hand out can be kept, not called.
        torch.save(Call(HistoryBuffer.mean, HistoryBuffer([1.0], [1])), tmp_path / "attack.pth")
        self.refused(tmp_path / "attack.pth")
        assert not marker.exists()

    def test_checksum(self, tmp_path):
        torch.save({"weight": torch.ones(3)}, tmp_path / "plain.pth")
        content = (tmp_path / "plain.pth").read_bytes()
        found = hashlib.sha256(content).hexdigest()
        assert read_checkpoint(tmp_path / "plain.pth", sha256=found)["weight"].sum() == 3
        assert read_checkpoint(tmp_path / "plain.pth", sha256=found[:8].upper())
        for wrong, code in (("00000000", "broken-file"), ("abc", "bad-value")):
            with pytest.raises(InputError, match=wrong) as caught:
                read_checkpoint(tmp_path / "plain.pth", sha256=wrong)
            assert caught.value.code == code
        network = ConvNeXt(
            **V1,
            init_cfg=dict(
                type="Pretrained", checkpoint=str(tmp_path / "plain.pth"), sha256="ab" * 4
            ),
        )
        with pytest.raises(InputError) as caught:
            network.init_weights()
        assert caught.value.code == "broken-file"

    @pytest.mark.parametrize(
        "name", ["run-20240131", "iter-00010000", "run-31012024", "exp-99999999", "x-0123456789"]
    )
    def test_a_counter_or_a_date_is_no_checksum(self, name, tmp_path, warned):
        torch.save({"weight": torch.ones(3)}, tmp_path / f"{name}.pth")
        assert read_checkpoint(tmp_path / f"{name}.pth")["weight"].sum() == 3
        assert not warned

    def test_what_may_be_a_checksum_is_worth_a_warning(self, tmp_path, warned):
        torch.save({"weight": torch.ones(3)}, tmp_path / "exp-deadbeef.pth")
        assert read_checkpoint(tmp_path / "exp-deadbeef.pth")["weight"].sum() == 3
        (line,) = warned
        assert "exp-deadbeef.pth" in line and "\n" not in line
        digest = hashlib.sha256((tmp_path / "exp-deadbeef.pth").read_bytes()).hexdigest()
        length = next(n for n in range(8, 65) if not digest[:n].isdecimal())
        (tmp_path / "exp-deadbeef.pth").rename(tmp_path / f"exp-{digest[:length]}.pth")
        warned.clear()
        assert read_checkpoint(tmp_path / f"exp-{digest[:length]}.pth")
        assert not warned

    def test_index_of_several_files(self, tmp_path):
        parts = {"a.safetensors": {"one": torch.ones(2)}, "b.safetensors": {"two": torch.zeros(3)}}
        for name, tensors in parts.items():
            save_file(tensors, tmp_path / name)
        index = tmp_path / "model.safetensors.index.json"
        places = {key: name for name, tensors in parts.items() for key in tensors}
        index.write_text(json.dumps(dict(metadata={}, weight_map=places)))
        for source in (index, tmp_path):
            assert {k: len(v) for k, v in read_checkpoint(source).items()} == dict(one=2, two=3)
        (tmp_path / "b.safetensors").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="b.safetensors") as caught:
            read_checkpoint(index)
        assert caught.value.code == "not-found"
        save_file(parts["a.safetensors"], tmp_path / "b.safetensors")
        self.refused(index, words="two")
        for content in (
            "{}",
            "not json",
            json.dumps(dict(weight_map=[1])),
            json.dumps(dict(weight_map={"one": "../a.safetensors"})),
            json.dumps(dict(weight_map={"one": "a.safetensors/../../x"})),
            json.dumps(dict(weight_map={"one": 3})),
        ):
            index.write_text(content)
            self.refused(index)

    def test_unreachable_url(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(InputError, match=str(tmp_path)) as caught:
            read_checkpoint("http://127.0.0.1:9/convnext_tiny_1k_224.pth")
        assert caught.value.code == "download-failed" and "\n" not in str(caught.value)
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]


class Server(ThreadingHTTPServer):
    """Files over HTTP on this machine, and the requests that came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self, body: bool = True) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.server.files.get(path)
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b"<html>no such page</html>"
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 39 + "1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) - self.server.cut])

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def saved_bytes(path: Path, arguments: dict = V1) -> tuple[ConvNeXt, bytes]:
    source = randomise(ConvNeXtClassifier(num_classes=5, **arguments))
    if path.suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(dict(model=source.state_dict()), path)
    return source, path.read_bytes()


class TestUrls:
    def test_downloaded_once(self, server, tmp_path):
        source, server.files["/convnext/tiny_1k_224.pth"] = saved_bytes(tmp_path / "a.pth")
        url = f"{server.address}/convnext/tiny_1k_224.pth"
        assert_same(build(url, **V1), source)
        assert_same(build(url, **V1), source)
        assert server.asked == ["GET /convnext/tiny_1k_224.pth"]

    def test_two_files_of_one_name(self, server, tmp_path):
        sources = {}
        for owner in ("one", "other"):
            path = tmp_path / f"{owner}.safetensors"
            sources[owner], server.files[f"/{owner}/model.safetensors"] = saved_bytes(path)
        for owner, source in sources.items():
            assert_same(build(f"{server.address}/{owner}/model.safetensors", **V1), source)

    def test_missing(self, server):
        with pytest.raises(InputError, match="none.pth") as caught:
            read_checkpoint(f"{server.address}/none.pth")
        assert caught.value.code == "download-failed" and "\n" not in str(caught.value)

    def test_nothing_bad_stays_in_the_cache(self, server, tmp_path):
        source, content = saved_bytes(tmp_path / "a.pth")
        name = f"/x-{hashlib.sha256(content).hexdigest()}.pth"
        for first in (b"<html>please log in</html>", content[:5000], content + b"more"):
            server.files[name] = first
            with pytest.raises(InputError) as caught:
                read_checkpoint(server.address + name)
            assert caught.value.code == "broken-file"
            assert not [p for p in (tmp_path / "torch").rglob("*") if p.is_file()]
            server.files[name] = content
            assert_same(build(server.address + name, **V1), source)
            for path in (tmp_path / "torch").rglob("*.pth"):
                path.unlink()

    def test_name_of_a_download_promises_its_checksum(self, server, tmp_path):
        """Cut off nowhere, and another file than the name promises."""
        _, content = saved_bytes(tmp_path / "a.pth")
        for name, refused in (("x-deadbeef.pth", True), ("run-20240131.pth", False)):
            server.files[f"/{name}"] = content
            if not refused:
                assert read_checkpoint(f"{server.address}/{name}")
                continue
            with pytest.raises(InputError, match="deadbeef") as caught:
                read_checkpoint(f"{server.address}/{name}")
            assert caught.value.code == "broken-file"

    def test_index(self, server, tmp_path):
        """Its files are fetched from where it came from."""
        server.files["/big/a.safetensors"] = save({"one": torch.ones(2)})
        server.files["/big/b.safetensors"] = save({"two": torch.ones(3)})
        places = dict(one="a.safetensors", two="b.safetensors")
        index = json.dumps(dict(weight_map=places)).encode()
        server.files["/big/model.safetensors.index.json"] = index
        read = read_checkpoint(f"{server.address}/big/model.safetensors.index.json")
        assert {k: len(v) for k, v in read.items()} == dict(one=2, two=3)
        assert len(server.asked) == 3

    def test_connection_that_ends_early(self, server, tmp_path):
        source, server.files["/a.pth"] = saved_bytes(tmp_path / "a.pth")
        server.cut = 1000
        with pytest.raises(InputError, match="a.pth"):
            read_checkpoint(f"{server.address}/a.pth")
        server.cut = 0
        assert_same(build(f"{server.address}/a.pth", **V1), source)

    def test_damaged_file_in_the_cache_is_named(self, server, tmp_path):
        _, server.files["/a.pth"] = saved_bytes(tmp_path / "a.pth")
        read_checkpoint(f"{server.address}/a.pth")
        (cached,) = (tmp_path / "torch").rglob("a.pth")
        cached.write_bytes(cached.read_bytes()[:2000])
        with pytest.raises(InputError, match=f"delete {re.escape(str(cached))}"):
            read_checkpoint(f"{server.address}/a.pth")


class TestHub:
    """huggingface_hub itself, against a hub on this machine; it reads its settings at import."""

    def read(self, server: Server, tmp_path: Path, *names: str) -> list:
        program = (
            "import json, sys, torch\n"
            "from backbones import ConvNeXt, InputError\n"
            "answers = []\n"
            "for name in sys.argv[1:]:\n"
            "    arch = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))\n"
            "    init = dict(type='Pretrained', checkpoint=name)\n"
            "    network = ConvNeXt(arch, layer_scale_init_value=1.0, init_cfg=init)\n"
            "    try:\n"
            "        network.init_weights()\n"
            "        answers.append(network.stages[3][0].pwconv1.weight.double().sum().item())\n"
            "    except InputError as error:\n"
            "        answers.append(str(error))\n"
            "print(json.dumps(answers))\n"
        )
        environment = dict(HF_ENDPOINT=server.address, HF_HOME=str(tmp_path / "hub"))
        done = subprocess.run(
            [sys.executable, "-c", program, *names],
            env={**os.environ, **environment, "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def test_names(self, server, tmp_path):
        sums = {}
        for where, file in (
            ("timm/convnext_tiny.fb_in1k/resolve/main", "model.safetensors"),
            ("owner/name/resolve/v1.0", "pytorch_model.bin"),
            ("owner/name/resolve/main", "weights/mine.pth"),
        ):
            path = tmp_path / Path(file).name
            source, server.files[f"/{where}/{file}"] = saved_bytes(path)
            sums[where] = source.stages[3][0].pwconv1.weight.double().sum().item()
        big = "/owner/big/resolve/main"
        whole = saved_bytes(tmp_path / "whole.safetensors")[0].state_dict()
        names = sorted(whole)
        parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for file, keys in parts.items():
            server.files[f"{big}/{file}"] = save({key: whole[key] for key in keys})
        places = {key: file for file, keys in parts.items() for key in keys}
        index = json.dumps(dict(weight_map=places)).encode()
        server.files[f"{big}/model.safetensors.index.json"] = index
        (answer,) = self.read(server, tmp_path, "hf-hub:owner/big")
        assert answer == whole["stages.3.0.pwconv1.weight"].double().sum().item()
        answers = self.read(
            server,
            tmp_path,
            "timm:convnext_tiny.fb_in1k",
            "hf-hub:timm/convnext_tiny.fb_in1k",
            "hf-hub:owner/name@v1.0",
            "hf-hub:owner/name/weights/mine.pth",
            "hf-hub:owner/name",
            "timm:convnext_tiny",
            "hf-hub:no-owner",
        )
        tag, *rest = sums.values()
        assert answers[:4] == [tag, tag, *rest]
        assert "owner/name" in answers[4] and "model.safetensors" in answers[4]
        assert "timm:convnext_tiny" in answers[5]
        assert "hf-hub:owner/name" in answers[6]
        assert all("\n" not in answer for answer in answers[4:])

    @pytest.mark.slow
    def test_no_connection(self, server, tmp_path):
        server.shutdown()
        server.server_close()
        (answer,) = self.read(server, tmp_path, "hf-hub:owner/name")
        assert "hf-hub:owner/name: download failed (" in answer and "\n" not in answer


class TestChannels:
    @pytest.mark.parametrize("channels", [1, 2, 4, 13])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_rule_is_that_of_timm(self, channels, dtype):
        from timm.models import adapt_input_conv

        weight = torch.randn(8, 3, 4, 4).to(dtype)
        ours, theirs = adapt_stem(weight, channels), adapt_input_conv(channels, weight.clone())
        assert ours.shape == (8, channels, 4, 4) and ours.dtype == dtype
        assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("channels", [1, 2, 4, 13])
    def test_loading(self, channels, tmp_path):
        source, _ = saved_bytes(tmp_path / "rgb.pth")
        network = ConvNeXt(**V1, in_channels=channels)
        coverage = load_pretrained(network, tmp_path / "rgb.pth")
        assert f"stem adapted from 3 to {channels} channels" in str(coverage)
        stem = source.downsample_layers[0][0].weight
        assert torch.equal(network.downsample_layers[0][0].weight, adapt_stem(stem, channels))
        assert torch.equal(network.stages[0][0].gamma, source.stages[0][0].gamma)

    def test_grey_images_look_like_grey_colour_images(self, tmp_path):
        source, _ = saved_bytes(tmp_path / "rgb.pth")
        network = ConvNeXt(**V1, in_channels=1).eval()
        load_pretrained(network, tmp_path / "rgb.pth")
        grey = torch.randn(1, 1, 64, 64)
        with torch.no_grad():
            ours = list(network.forward_stages(grey))[-1]
            colour = list(source.eval().forward_stages(grey.expand(1, 3, 64, 64)))[-1]
        torch.testing.assert_close(ours, colour, rtol=0, atol=1e-5)

    def test_other_mismatches_stay_errors(self, tmp_path):
        for source, target in ((4, 3), (4, 5), (1, 3)):
            state = ConvNeXtClassifier(num_classes=5, in_channels=source, **V1).state_dict()
            torch.save(state, tmp_path / "other.pth")
            shapes = rf"\(8, {source}, 4, 4\).*\(8, {target}, 4, 4\)"
            with pytest.raises(InputError, match=shapes) as caught:
                load_pretrained(ConvNeXt(**V1, in_channels=target), tmp_path / "other.pth")
            assert caught.value.code == "checkpoint-mismatch"


class TestWhichWeights:
    @pytest.mark.parametrize(
        "name, facts",
        [
            ("convnext_tiny_1k_224_ema.pth", ["ImageNet-1k", "224 px", "EMA"]),
            ("convnext_base_22k_1k_384.pth", ["ImageNet-22k", "ImageNet-1k", "384 px"]),
            ("convnext_base_22k_224.pth", ["ImageNet-22k", "224 px"]),
            ("convnext-tiny_3rdparty_32xb128-noema_in1k.pth", ["ImageNet-1k", "not EMA"]),
            ("convnextv2_tiny_1k_224_fcmae.pt", ["FCMAE", "ImageNet-1k", "224 px", "CC-BY-NC"]),
            ("convnext_tiny.dinov3_lvd1689m", ["DINOv3", "licence DINOv3 License"]),
            ("convnext_tiny.in12k_ft_in1k_384", ["ImageNet-12k", "ImageNet-1k", "384 px"]),
            ("mine.pth", []),
        ],
    )
    def test_names(self, name, facts, tmp_path):
        saved_bytes(tmp_path / "a.pth")
        (tmp_path / "a.pth").rename(tmp_path / name)
        weights = load_pretrained(ConvNeXt(**V1), tmp_path / name).weights
        sizes = "ConvNeXt V1 with depths (1, 1, 2, 1) and dims (8, 12, 16, 20)"
        assert weights.startswith(sizes)
        rest = weights.removeprefix(sizes).removeprefix(", ")
        for fact in facts:
            assert fact in rest
        assert bool(facts) == bool(rest)
        assert ("22k" in rest, "EMA" in rest) == ("22k" in name, "ema" in name)

    def test_size_is_named(self, tmp_path):
        torch.save(ConvNeXt("atto", use_grn=True).state_dict(), tmp_path / "x.pth")
        coverage = load_pretrained(ConvNeXt("atto", use_grn=True), tmp_path / "x.pth")
        assert coverage.weights == "ConvNeXt V2 atto"

    def test_one_of_two_sets_is_chosen_and_said(self, tmp_path):
        plain, average = (
            randomise(ConvNeXtClassifier(num_classes=5, **V1)).state_dict() for _ in range(2)
        )
        torch.save(dict(model=plain, model_ema=average, epoch=3), tmp_path / "checkpoint-3.pth")
        for wrapper, wanted, words in (
            (None, plain, "(8, 12, 16, 20), not EMA, under 'model' (also there: model_ema)"),
            ("model_ema", average, "(8, 12, 16, 20), EMA, under 'model_ema' (also there: model)"),
        ):
            network = ConvNeXt(**V1)
            coverage = load_pretrained(network, tmp_path / "checkpoint-3.pth", wrapper=wrapper)
            assert torch.equal(network.stages[0][0].gamma, wanted["stages.0.0.gamma"])
            assert coverage.weights.endswith(words)
        with pytest.raises(InputError, match="'teacher'") as caught:
            load_pretrained(ConvNeXt(**V1), tmp_path / "checkpoint-3.pth", wrapper="teacher")
        assert caught.value.code == "bad-value"


def set_batch_norms(model: torch.nn.Module) -> None:
    """Statistics that matter, and parameters of a whole model that are no zeros."""
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)


def mm_model(package: str, name: str, scope: str, shrink) -> torch.nn.Module:
    """A model of a config as mmdet or mmseg publish it, its ConvNeXt that of mmpretrain."""
    import importlib

    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import_mmpretrain()
    folder = Path(importlib.import_module(package).__file__).parent / ".mim/configs/convnext"
    config = Config.fromfile(folder / name).model
    config.backbone.init_cfg = None
    config.backbone.arch = dict(depths=list(NARROW["depths"]), channels=list(NARROW["dims"]))
    shrink(config)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config)
    set_batch_norms(model)
    model.eval()
    return model


def our_model(path: str, shrink) -> torch.nn.Module:
    from mmengine.registry import DefaultScope

    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.config.machine import fit_to_machine

    config = load_config(Path(__file__).parents[2] / path)
    config.launcher = "none"
    fit_to_machine(config)
    config.model.backbone.arch = NARROW
    config.model.backbone.init_cfg = None
    shrink(config.model)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model).eval()


def narrow_detector(model) -> None:
    model.neck.update(in_channels=list(NARROW["dims"]), out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    for head in model.roi_head.bbox_head:
        head.update(in_channels=16, conv_out_channels=16, fc_out_channels=24, num_classes=7)
        head.norm_cfg = dict(type="BN")
    model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=7)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.out_channels = 16


def narrow_segmentor(model) -> None:
    model.decode_head.update(in_channels=list(NARROW["dims"]), channels=16, num_classes=7)
    model.auxiliary_head.update(in_channels=16, channels=8, num_classes=7)
    for head in (model.decode_head, model.auxiliary_head):
        head.norm_cfg = dict(type="BN")


def assert_close(ours, theirs) -> None:
    """Nested outputs, tensor by tensor."""
    if isinstance(ours, torch.Tensor):
        assert theirs.abs().sum() > 0
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5, error
    else:
        assert len(ours) == len(theirs) > 0
        for mine, expected in zip(ours, theirs, strict=True):
            assert_close(mine, expected)


class TestWholeModels:
    """Published files evaluate: models of mmdet and mmseg themselves, saved as they save them."""

    def save(self, model: torch.nn.Module, path: Path) -> None:
        optimizer = torch.optim.AdamW(model.parameters()).state_dict()
        meta = dict(mmcv_version="1.4.8", CLASSES=("a", "b"), epoch=36, config="model = dict()")
        torch.save(dict(meta=meta, state_dict=model.state_dict(), optimizer=optimizer), path)

    @torch.no_grad()
    def test_cascade_mask_rcnn(self, tmp_path):
        from mmdet.structures.bbox import bbox2roi

        name = "cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
        theirs = mm_model("mmdet", name, "mmdet", narrow_detector)
        self.save(theirs, tmp_path / "cascade.pth")
        ours = our_model("configs/detection/cascade_convnext_t.py", narrow_detector)
        line = load_strictly(ours, read_checkpoint(tmp_path / "cascade.pth"), "cascade.pth")
        assert line.endswith("(backbone in the mmpretrain layout)")
        x = torch.randn(1, 3, 128, 160)
        ours_maps, theirs_maps = ours.extract_feat(x), theirs.extract_feat(x)
        assert_close(ours_maps, theirs_maps)
        assert_close(ours.rpn_head(ours_maps), theirs.rpn_head(theirs_maps))
        boxes = torch.tensor([[3.0, 4.0, 90.0, 100.0], [20.0, 30.0, 150.0, 60.0]])
        for stage in range(3):
            for forward in ("_bbox_forward", "_mask_forward"):
                mine, expected = (
                    getattr(model.roi_head, forward)(stage, maps[:4], bbox2roi([boxes]))
                    for model, maps in ((ours, ours_maps), (theirs, theirs_maps))
                )
                for output in ("cls_score", "bbox_pred") if "bbox" in forward else ("mask_preds",):
                    assert_close(mine[output], expected[output])

    @torch.no_grad()
    def test_upernet(self, tmp_path):
        """Through mmengine's own door, the runner."""
        from backbones.openmmlab.training.runner import Runner

        name = "convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py"
        theirs = mm_model("mmseg", name, "mmseg", narrow_segmentor)
        self.save(theirs, tmp_path / "upernet.pth")
        ours = our_model("configs/segmentation/upernet_convnext_t.py", narrow_segmentor)
        runner = Runner(ours, work_dir=str(tmp_path / "run"), experiment_name="upernet")
        runner.load_checkpoint(str(tmp_path / "upernet.pth"))
        x = torch.randn(1, 3, 64, 96)
        ours_maps, theirs_maps = ours.extract_feat(x), theirs.extract_feat(x)
        assert_close(ours_maps, theirs_maps)
        for head in ("decode_head", "auxiliary_head"):
            assert_close(getattr(ours, head)(ours_maps), getattr(theirs, head)(theirs_maps))

    def test_faults(self, tmp_path):
        """One at a time; the model stays as it was."""
        ours = our_model("configs/segmentation/upernet_convnext_t.py", narrow_segmentor)
        before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        good = {name: torch.randn_like(t.float()) for name, t in before.items()}
        backbone = {k.removeprefix("backbone."): v for k, v in good.items() if "backbone." in k}
        head = "decode_head.conv_seg.weight"
        for state, words in (
            ({k: v for k, v in good.items() if k != head}, head),
            (good | {head: torch.ones(9, 16, 1, 1)}, f"{head} .*9, 16, 1, 1.*7, 16, 1, 1"),
            (good | {"decode_head.extra.weight": torch.ones(1)}, "decode_head.extra.weight"),
            (good | {"backbone.extra": torch.ones(1)}, "backbone.extra"),
            (backbone, "model.backbone.init_cfg"),
            ({"stem.0.weight": torch.ones(1)}, None),
        ):
            with pytest.raises(InputError, match=words) as caught:
                load_strictly(ours, dict(state_dict=state), "x.pth")
            code = "checkpoint-mismatch" if words else "unknown-layout"
            assert (caught.value.code, caught.value.where) == (code, "x.pth")
            for name, tensor in ours.state_dict().items():
                assert torch.equal(tensor, before[name]), name
        load_strictly(ours, {f"model.{name}": tensor for name, tensor in good.items()}, "x.pth")
        assert torch.equal(ours.state_dict()[head], good[head])
