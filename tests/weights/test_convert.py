"""tools/convert.py: bit for bit there and back, and strictly into each library's own model."""

import json

import pytest
import torch
from mmengine.registry import DefaultScope
from safetensors.torch import load_file
from support.library_models import (
    DEPTHS,
    DIMS,
    NARROW,
    V1,
    V2,
    VERSIONS,
    mmpretrain_model,
    timm_model,
    torchvision_model,
    transformers_model,
)
from support.oracles import import_mmpretrain, randomise
from support.running import assert_error, run_here

from backbones import ConvNeXt, ConvNeXtClassifier
from backbones.weights import convert, state_dict

TARGETS = ["official", "timm", "torchvision", "transformers", "mmpretrain"]
PAIRS = [(target, V1) for target in TARGETS]
PAIRS += [(target, V2) for target in TARGETS if target != "torchvision"]  # it has no V2


def converted(source, out, target, *options):
    """The tool as a user runs it; the tensors it wrote."""
    outcome = run_here("convert.py", source, out, "--to", target, *options)
    assert outcome.status == 0, outcome.err
    assert not list(out.parent.glob(".*"))
    if out.suffix == ".safetensors":
        return load_file(out)
    return state_dict(torch.load(out, weights_only=True), out)


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape, name
        assert torch.equal(tensor, other[name]), name


def classifier(arguments: dict) -> ConvNeXtClassifier:
    return randomise(ConvNeXtClassifier(num_classes=5, **arguments)).eval()


def library_model(target: str, arguments: dict) -> torch.nn.Module:
    """The library's own classifier at that size."""
    grn = arguments is V2
    if target == "timm":
        return timm_model(arguments)
    if target == "torchvision":
        return torchvision_model()
    if target == "transformers":
        name = "ConvNextV2ForImageClassification" if grn else "ConvNextForImageClassification"
        return transformers_model(name, layer_scale_init_value=1.0)
    if target == "mmpretrain":
        build = import_mmpretrain().build_classifier
        arch = dict(depths=list(DEPTHS), channels=list(DIMS))
        sizes = dict(arch=arch, use_grn=grn, layer_scale_init_value=1.0 - grn)
        head = dict(type="LinearClsHead", num_classes=5, in_channels=20)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            backbone = dict(type="ConvNeXt", **sizes)
            return build(dict(type="ImageClassifier", backbone=backbone, head=head))
    return ConvNeXtClassifier(num_classes=5, **arguments)


@pytest.mark.parametrize("target, arguments", PAIRS)
class TestClassifiers:
    def test_there_and_back(self, target, arguments, tmp_path):
        state = classifier(arguments).state_dict()
        torch.save(dict(model=state), tmp_path / "official.pth")
        there = tmp_path / f"there.{'safetensors' if target == 'transformers' else 'pth'}"
        converted(tmp_path / "official.pth", there, target)
        assert_equal(converted(there, tmp_path / "back.pth", "official"), state)

    def test_their_own_and_back(self, target, arguments, tmp_path):
        theirs = library_model(target, arguments)
        theirs.half()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        converted(tmp_path / "theirs.pth", tmp_path / "official.pth", "official")
        back = converted(tmp_path / "official.pth", tmp_path / "back.pth", target)
        assert_equal(back, theirs.state_dict())

    @torch.no_grad()
    def test_their_model_takes_it_strictly(self, target, arguments, tmp_path):
        """And says the same of an image."""
        ours = classifier(arguments)
        torch.save(dict(model=ours.state_dict()), tmp_path / "official.pth")
        tensors = converted(tmp_path / "official.pth", tmp_path / "theirs.safetensors", target)
        theirs = library_model(target, arguments)
        theirs.load_state_dict(tensors, strict=True)
        theirs.eval()
        x = torch.randn(2, 3, 64, 64)
        logits = theirs(x)
        logits = getattr(logits, "logits", logits)
        expected = ours(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@VERSIONS
class TestBackbones:
    """Without a classifier, with an output norm for each stage."""

    @pytest.mark.parametrize("target", ["transformers", "mmpretrain"])
    def test_dense_backbone(self, arguments, target, tmp_path):
        ours = randomise(ConvNeXt(**arguments)).eval()
        state = ours.state_dict()
        torch.save(dict(model=state), tmp_path / "official.pth")
        tensors = converted(tmp_path / "official.pth", tmp_path / "theirs.pth", target)
        if target == "transformers":
            family = "ConvNextV2" if arguments is V2 else "ConvNext"
            theirs = transformers_model(f"{family}Backbone")
        else:
            theirs = mmpretrain_model(
                arguments, out_indices=[0, 1, 2, 3], gap_before_final_norm=False
            )
            tensors = {name.removeprefix("backbone."): t for name, t in tensors.items()}
        theirs.load_state_dict(tensors, strict=True)
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            maps = theirs(x)
            for mine, expected in zip(ours(x), getattr(maps, "feature_maps", maps), strict=True):
                torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
        assert_equal(converted(tmp_path / "theirs.pth", tmp_path / "back.pth", "official"), state)

    @pytest.mark.parametrize("target", ["timm", "torchvision"])
    def test_no_place_for_output_norms(self, arguments, target, tmp_path):
        state = ConvNeXt(**arguments).state_dict()
        torch.save(state, tmp_path / "dense.pth")
        outcome = run_here(
            "convert.py", tmp_path / "dense.pth", tmp_path / "out.pth", "--to", target
        )
        assert_error(outcome, "unsupported", "dense.pth", target)
        assert not (tmp_path / "out.pth").exists()


def test_torchvision_has_no_v2(tmp_path):
    torch.save(classifier(V2).state_dict(), tmp_path / "v2.pth")
    outcome = run_here("convert.py", tmp_path / "v2.pth", tmp_path / "x.pth", "--to", "torchvision")
    assert outcome.err.count("\n") == 1
    assert_error(outcome, "unsupported", "v2.pth", "torchvision", "stages.0.0.grn.")


@VERSIONS
def test_timm_architectures_with_convolutions(arguments, tmp_path):
    """timm's atto to nano hold 1x1 convolutions where others have linears."""
    import timm

    tag = "convnextv2_atto" if arguments is V2 else "convnext_atto"
    theirs = timm.create_model(tag, num_classes=5)
    state = theirs.state_dict()
    assert state["stages.0.blocks.0.mlp.fc1.weight"].shape == (160, 40, 1, 1)
    torch.save(state, tmp_path / "timm.pth")
    official = converted(tmp_path / "timm.pth", tmp_path / "official.pth", "official")
    network = ConvNeXtClassifier("atto", num_classes=5, use_grn=arguments is V2)
    network.load_state_dict(official, strict=True)
    assert_equal(converted(tmp_path / "official.pth", tmp_path / "back.pth", "timm"), state)


def test_norm_before_pooling_fits_timm_alone(tmp_path):
    """Its norm comes before the pooling: in another library's classifier it would be wrong."""
    theirs = timm_model(V1, head_norm_first=True, conv_mlp=True)
    torch.save(theirs.state_dict(), tmp_path / "hnf.pth")
    assert_equal(
        converted(tmp_path / "hnf.pth", tmp_path / "again.pth", "timm"), theirs.state_dict()
    )
    for target in TARGETS:
        if target != "timm":
            outcome = run_here("convert.py", tmp_path / "hnf.pth", tmp_path / "x", "--to", target)
            assert_error(outcome, "unsupported", "hnf.pth", "norm3.weight")


def test_hidden_layer_of_a_head_is_left_out_with_the_head(tmp_path):
    torch.save(timm_model(V1, head_hidden_size=20).state_dict(), tmp_path / "large_mlp.pth")
    tensors, line = convert(tmp_path / "large_mlp.pth", "official")
    assert "norm.weight" in tensors and "head.weight" not in tensors
    assert "left out: head" in line


def test_backbone_of_a_detector(tmp_path):
    state = {f"backbone.{k}": v for k, v in randomise(ConvNeXt(**V1)).state_dict().items()}
    torch.save(dict(state_dict=state | {"neck.conv.weight": torch.ones(1)}), tmp_path / "det.pth")
    outcome = run_here("convert.py", tmp_path / "det.pth", tmp_path / "b.pth", "--to", "official")
    assert "left out: neck" in outcome.out
    written = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert_equal(written, {k.removeprefix("backbone."): v for k, v in state.items()})


def test_saved_safetensors_open_in_transformers(tmp_path):
    """A folder as its `from_pretrained` reads it."""
    ours = classifier(V1)
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    folder = tmp_path / "hub"
    theirs = library_model("transformers", V1)
    theirs.config.save_pretrained(folder)
    converted(tmp_path / "ours.pth", folder / "model.safetensors", "transformers", "--safetensors")
    assert json.loads((folder / "config.json").read_text())["hidden_sizes"] == list(NARROW["dims"])
    again = type(theirs).from_pretrained(folder).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, ours(x), rtol=0, atol=1e-5)


def test_existing_file_is_kept(tmp_path):
    torch.save(classifier(V1).state_dict(), tmp_path / "in.pth")
    (tmp_path / "out.pth").write_text("precious")
    arguments = (tmp_path / "in.pth", tmp_path / "out.pth", "--to", "timm")
    outcome = run_here("convert.py", *arguments)
    assert_error(outcome, "write-failed", "out.pth", "--force")
    assert (tmp_path / "out.pth").read_text() == "precious"
    assert run_here("convert.py", *arguments, "--force").status == 0
    assert "stem.0.weight" in torch.load(tmp_path / "out.pth", weights_only=True)


def test_folder_that_does_not_exist(tmp_path):
    torch.save(classifier(V1).state_dict(), tmp_path / "in.pth")
    for name in ("none/out.pth", "none/out.safetensors"):
        outcome = run_here("convert.py", tmp_path / "in.pth", tmp_path / name, "--to", "timm")
        assert_error(outcome, "write-failed", name)


def test_no_convnext(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    outcome = run_here("convert.py", tmp_path / "resnet.pth", tmp_path / "x.pth", "--to", "timm")
    assert_error(outcome, "unknown-layout", "resnet.pth")
