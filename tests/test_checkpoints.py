"""Weights enter completely, from every layout known here, or not at all."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import import_mmpretrain, randomise
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS

from backbones import ConvNeXt, ConvNeXtClassifier, InputError
from backbones.checkpoints import load_pretrained, read_checkpoint

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


class TestRefusals:
    """One fault at a time, each named in one line, and the model left as it was."""

    def refused(self, state: object, tmp_path: Path, words: str, **arguments) -> None:
        path = tmp_path / "faulty.pth"
        torch.save(state, path)
        network = ConvNeXt(**(arguments or V1))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(InputError, match=words) as error:
            load_pretrained(network, path)
        assert "faulty.pth" in str(error.value)
        assert "\n" not in str(error.value)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def state(self, **arguments) -> dict:
        return randomise(ConvNeXtClassifier(num_classes=5, **(arguments or V1))).state_dict()

    def test_missing_tensor(self, tmp_path):
        state = self.state()
        del state["stages.2.1.pwconv1.bias"]
        self.refused(state, tmp_path, "stages.2.1.pwconv1.bias is missing")

    def test_transposed_tensor(self, tmp_path):
        state = self.state()
        state["stages.0.0.pwconv1.weight"] = state["stages.0.0.pwconv1.weight"].T
        self.refused(state, tmp_path, r"pwconv1.weight is \(8, 32\), not \(32, 8\)")

    def test_unknown_tensor(self, tmp_path):
        state = self.state() | {"stages.0.0.attention.weight": torch.ones(2)}
        self.refused(state, tmp_path, "stages.0.0.attention.weight is unknown")

    def test_missing_grn(self, tmp_path):
        state = self.state(**V2)
        del state["stages.1.0.grn.gamma"]
        self.refused(state, tmp_path, "stages.1.0.grn.gamma is missing", **V2)

    def test_missing_output_norm_of_a_detector(self, tmp_path):
        state = {f"backbone.{k}": v for k, v in ConvNeXt(**V1).state_dict().items()}
        del state["backbone.norm1.bias"]
        self.refused(state, tmp_path, "norm1.bias is missing")

    def test_other_architecture(self, tmp_path):
        self.refused(
            self.state(), tmp_path, r"depths \(1, 1, 2, 1\).*depths \(2, 2, 6, 2\)", arch="atto"
        )

    def test_other_version(self, tmp_path):
        self.refused(self.state(**V2), tmp_path, "V2.*use_grn=True")
        self.refused(self.state(), tmp_path, "V1.*use_grn=False", **V2)

    def test_no_convnext(self, tmp_path):
        self.refused({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path, "no ConvNeXt weights")

    def test_two_backbones(self, tmp_path):
        state = {f"{who}.{k}": v for k, v in self.state().items() for who in ("teacher", "student")}
        self.refused(state, tmp_path, "prefix=: .*'teacher.', 'student.'")
        network = ConvNeXt(**V1)
        load_pretrained(network, tmp_path / "faulty.pth", prefix="student.")
        assert torch.equal(network.stages[0][0].gamma, state["student.stages.0.0.gamma"])

    def test_no_weights_at_all(self, tmp_path):
        self.refused(dict(epoch=3), tmp_path, "holds no tensors")
        self.refused([1, 2], tmp_path, "list")

    def test_unknown_init_cfg_argument(self, tmp_path):
        network = ConvNeXt(**V1, init_cfg=dict(type="Pretrained", checkpoint="x", strict=True))
        with pytest.raises(TypeError, match="strict"):
            network.init_weights()


class TestReading:
    def refused(self, path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as error:
            read_checkpoint(path)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)

    def test_missing_and_empty(self, tmp_path):
        self.refused(tmp_path / "none.pth", "no such")
        (tmp_path / "empty.pth").touch()
        self.refused(tmp_path / "empty.pth", "empty")

    def test_web_page(self, tmp_path):
        path = tmp_path / "page.pth"
        path.write_text("<!DOCTYPE html><html>Not found</html>")
        self.refused(path, "web page")

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
    def test_cut_off(self, tmp_path, share):
        path = tmp_path / "whole.pth"
        torch.save(ConvNeXt(**V1).state_dict(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        self.refused(path, "cut off|damaged|not a PyTorch checkpoint")

    @pytest.mark.parametrize("kind", ["torch", "pickle"])
    def test_code_is_not_run(self, tmp_path, kind):
        class Malicious:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        path = tmp_path / "malicious.pth"
        if kind == "torch":
            torch.save(dict(model=Malicious()), path)
        else:
            path.write_bytes(pickle.dumps(dict(model=Malicious())))
        self.refused(path, "refused|not a PyTorch checkpoint")
        assert not (tmp_path / "executed").exists()

    def test_unreachable_url(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(InputError, match="download failed.*put it at") as error:
            read_checkpoint("http://127.0.0.1:9/convnext_tiny_1k_224.pth")
        assert "\n" not in str(error.value)
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]
