"""Every library's own model, saved by itself and loaded through our configs, map for map."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from support.library_models import (
    V1,
    V2,
    VERSIONS,
    images,
    mmpretrain_model,
    randomised,
    timm_model,
    torchvision_model,
    transformers_model,
)
from support.oracles import randomise
from torch import nn

from backbones import ConvNeXt, InputError
from backbones.weights import DIALECTS, check_path, load_pretrained, recognise


def loaded(path: Path | str, **arguments) -> ConvNeXt:
    """As mmengine does it: build from a config, then carry out init_cfg; random output norms
    first, so that one that was not loaded shows."""
    config = dict(type="ConvNeXt", init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    network = MODELS.build(config | arguments)
    for i in network.out_indices:
        randomise(getattr(network, f"norm{i}"))
    network.init_weights()
    return network.eval()


@torch.no_grad()
def assert_same_maps(network: ConvNeXt, theirs: list, x: torch.Tensor, normed=()) -> None:
    """Equal maps, ours before our norm except for the stages in `normed`."""
    ours = list(network.forward_stages(x))
    assert len(ours) == len(theirs) == 4
    for i, (mine, expected) in enumerate(zip(ours, theirs, strict=True)):
        if i in normed:
            mine = getattr(network, f"norm{i}")(mine)
        assert expected.abs().mean() > 0.05
        error = (mine - expected).abs().max()
        assert error < 1e-5, f"map {i}: {error}"


def stages_of(model: nn.Module, stages: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """What each stage of a library's model returns, whatever the model makes of it."""
    maps = []
    hooks = [s.register_forward_hook(lambda m, i, out: maps.append(out)) for s in stages]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return maps


@VERSIONS
class TestLibraries:
    @pytest.mark.parametrize("conv_mlp", [False, True])
    def test_timm(self, arguments, conv_mlp, tmp_path):
        theirs = timm_model(arguments, conv_mlp=conv_mlp)
        torch.save(theirs.state_dict(), tmp_path / "timm.pth")
        network, x = loaded(tmp_path / "timm.pth", **arguments), images()
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)

    def test_timm_safetensors(self, arguments, tmp_path):
        from safetensors.torch import save_file

        theirs = timm_model(arguments)
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        network, x = loaded(tmp_path / "model.safetensors", **arguments), images()
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)

    @pytest.mark.parametrize("name", ["convnext_tiny.dinov3_lvd1689m", "convnext_tiny.fb_in1k"])
    def test_timm_without_a_head(self, arguments, name, tmp_path):
        """DINOv3's final norm was trained on maps and is the last output norm; a classifier's was
        trained on pooled features, and the file does not tell them apart: its name does."""
        theirs = timm_model(arguments, num_classes=0)
        (tmp_path / name).mkdir()
        torch.save(theirs.state_dict(), tmp_path / name / "timm.pth")
        network, x = loaded(tmp_path / name / "timm.pth", **arguments), images()
        maps = stages_of(theirs, theirs.stages, x)
        on_maps = "dinov3" in name
        if on_maps:
            maps[3] = theirs.head.norm(maps[3])
        assert_same_maps(network, maps, x, normed=(3,) if on_maps else ())
        coverage = load_pretrained(ConvNeXt(**arguments), tmp_path / name / "timm.pth")
        assert ("norm3.weight" in coverage.loaded) == on_maps
        assert (
            ("norm3.weight" in coverage.initial) == ("norm.weight" in coverage.ignored) != on_maps
        )

    def test_timm_norm_before_pooling(self, arguments, tmp_path):
        theirs = timm_model(arguments, head_norm_first=True)
        torch.save(theirs.state_dict(), tmp_path / "hnf.pth")
        network, x = loaded(tmp_path / "hnf.pth", **arguments), images()
        maps = stages_of(theirs, theirs.stages, x)
        maps[3] = theirs.norm_pre(maps[3])
        assert_same_maps(network, maps, x, normed=(3,))

    def test_timm_clip_with_a_hidden_layer(self, arguments, tmp_path):
        theirs = timm_model(arguments, head_hidden_size=20)
        torch.save(theirs.state_dict(), tmp_path / "large_mlp.pth")
        network, x = loaded(tmp_path / "large_mlp.pth", **arguments), images()
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)
        fresh = ConvNeXt(**arguments)
        ignored = load_pretrained(fresh, tmp_path / "large_mlp.pth").ignored
        assert ignored["head.fc.weight"] == ignored["head.pre_logits.fc.weight"] == "a classifier's"

    def test_open_clip(self, arguments, tmp_path):
        """Its image tower is a timm model; beside it stand a projection and a text tower."""
        theirs = timm_model(arguments, num_classes=0)
        state = {f"visual.trunk.{name}": t for name, t in theirs.state_dict().items()}
        state |= {
            "visual.head.proj.weight": torch.randn(7, 20),
            "transformer.resblocks.0.ln_1.weight": torch.randn(4),
            "logit_scale": torch.tensor(2.0),
        }
        torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
        network, x = loaded(tmp_path / "open_clip_pytorch_model.bin", **arguments), images()
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)
        coverage = load_pretrained(network, tmp_path / "open_clip_pytorch_model.bin")
        assert coverage.ignored["transformer.resblocks.0.ln_1.weight"] == "outside the backbone"
        assert coverage.initial  # its norm is that of pooled features

    @pytest.mark.parametrize("kind", ["Model", "ForImageClassification"])
    def test_transformers(self, arguments, kind, tmp_path):
        family = "ConvNextV2" if arguments is V2 else "ConvNext"
        theirs = transformers_model(f"{family}{kind}", layer_scale_init_value=1.0)
        theirs.save_pretrained(tmp_path)
        network, x = loaded(tmp_path / "model.safetensors", **arguments), images()
        encoder = theirs if kind == "Model" else next(theirs.children())
        assert_same_maps(network, stages_of(theirs, encoder.encoder.stages, x), x)
        coverage = load_pretrained(ConvNeXt(**arguments), tmp_path / "model.safetensors")
        assert "norm.weight" in coverage.ignored and "norm3.weight" in coverage.initial

    def test_transformers_backbone(self, arguments, tmp_path):
        family = "ConvNextV2" if arguments is V2 else "ConvNext"
        theirs = transformers_model(f"{family}Backbone")
        theirs.save_pretrained(tmp_path)
        network, x = loaded(tmp_path / "model.safetensors", **arguments), images()
        with torch.no_grad():
            assert_same_maps(network, list(theirs(x).feature_maps), x, normed=(0, 1, 2, 3))

    def test_mmpretrain_backbone(self, arguments, tmp_path):
        theirs = mmpretrain_model(arguments, out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
        torch.save(dict(state_dict=theirs.state_dict()), tmp_path / "mm.pth")
        network, x = loaded(tmp_path / "mm.pth", **arguments), images()
        with torch.no_grad():
            assert_same_maps(network, list(theirs(x)), x, normed=(0, 1, 2, 3))

    @pytest.mark.parametrize("kind", ["Model", "ForImageClassification"])
    def test_transformers_in_several_files(self, arguments, kind, tmp_path):
        """The index, and the folder that `from_pretrained` would be given."""
        family = "ConvNextV2" if arguments is V2 else "ConvNext"
        theirs = transformers_model(f"{family}{kind}", layer_scale_init_value=1.0)
        theirs.save_pretrained(tmp_path, max_shard_size="10KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        x, encoder = images(), theirs if kind == "Model" else next(theirs.children())
        maps = stages_of(theirs, encoder.encoder.stages, x)
        for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
            check_path(source)
            assert_same_maps(loaded(source, **arguments), maps, x)

    @pytest.mark.parametrize(
        "wrapper",
        ["model", "state_dict", "model_state_dict", "model_ema", "teacher", "module", "net"]
        + ["params"],
    )
    def test_wrappers(self, arguments, wrapper, tmp_path):
        """With what training scripts keep beside the weights."""
        from argparse import Namespace

        theirs = timm_model(arguments)
        state = {f"module.{name}": t for name, t in theirs.state_dict().items()}
        args = Namespace(lr=4e-3, output_dir=tmp_path)
        optimizer = torch.optim.AdamW(theirs.parameters()).state_dict()
        content = {wrapper: state, "optimizer": optimizer, "args": args, "epoch": 3, "scaler": {}}
        torch.save(content, tmp_path / "training.pth")
        network, x = loaded(tmp_path / "training.pth", **arguments), images()
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "backbone._orig_mod.",
        "model._fsdp_wrapped_module.backbone._checkpoint_wrapped_module.",
    ],
)
def test_modules_that_pytorch_puts_around_others(prefix, tmp_path):
    theirs = timm_model(V1)
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    inner = {re.sub(r"(stages\.\d\.)", r"\1_orig_mod.", name): t for name, t in state.items()}
    assert inner.keys() != state.keys()
    x = images()
    for names in (state, inner):
        torch.save(dict(net=names), tmp_path / "compiled.pth")
        network = loaded(tmp_path / "compiled.pth", **V1)
        assert_same_maps(network, stages_of(theirs, theirs.stages, x), x)
    torch.save(state | inner, tmp_path / "twice.pth")
    with pytest.raises(InputError) as caught:
        load_pretrained(ConvNeXt(**V1), tmp_path / "twice.pth")
    assert caught.value.code == "unknown-layout"


def test_torchvision(tmp_path):
    theirs = torchvision_model()
    torch.save(theirs.state_dict(), tmp_path / "torchvision.pth")
    network, x = loaded(tmp_path / "torchvision.pth", **V1), images()
    assert_same_maps(network, stages_of(theirs, [theirs.features[i] for i in (1, 3, 5, 7)], x), x)


@pytest.mark.parametrize("saved", ["save_pretrained", "state_dict"])
def test_transformers_dinov3(saved, tmp_path):
    theirs = transformers_model("DINOv3ConvNextModel")
    if saved == "state_dict":  # its names have a `model.` that its files have not
        torch.save(theirs.state_dict(), tmp_path / "dinov3.pth")
        path = tmp_path / "dinov3.pth"
    else:
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    network, x = loaded(path, **V1), images()
    maps = stages_of(theirs, theirs.model.stages, x)
    with torch.no_grad():
        tokens = theirs(x).last_hidden_state[:, 1:]  # (N, H * W, C) after the final norm
    maps[3] = tokens.transpose(1, 2).reshape(maps[3].shape)
    assert_same_maps(network, maps, x, normed=(3,))


def test_transformers_dinov3_backbone(tmp_path):
    theirs = transformers_model("DINOv3ConvNextBackbone")
    theirs.save_pretrained(tmp_path)
    network, x = loaded(tmp_path / "model.safetensors", **V1), images()
    with torch.no_grad():
        assert_same_maps(network, list(theirs(x).feature_maps), x)


def test_official_dinov3_and_eupe(tmp_path):
    """`norms.3` is `norm` once more; EUPE also keeps what it was distilled with."""
    source = randomised(ConvNeXt(**V1))
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("norm")}
    for leaf in ("weight", "bias"):
        state[f"norm.{leaf}"] = state[f"norms.3.{leaf}"] = source.norm3.state_dict()[leaf]
    state["projectors.teacher.0.weight"] = torch.randn(3, 20)
    torch.save(state, tmp_path / "eupe_convnext.pth")
    network, x = loaded(tmp_path / "eupe_convnext.pth", **V1), images()
    with torch.no_grad():
        maps = [*list(source.forward_stages(x))[:3], source(x)[3]]
    assert_same_maps(network, maps, x, normed=(3,))
    coverage = load_pretrained(network, tmp_path / "eupe_convnext.pth")
    assert coverage.changed == ("its final norm is norm3",)
    assert coverage.ignored["projectors.teacher.0.weight"] == "of distillation"
    assert "EUPE" in coverage.weights and "not for commercial use" in str(coverage)


def minkowski(state: dict) -> dict:
    """An official V2 encoder in the sparse names and shapes of its self-supervised training.

    The other way round of `remap_checkpoint_keys` in the official repository's utils.py: a kernel
    is (k * k, in, out), or (k * k, C) where depthwise, its positions counted down the columns.
    """
    sparse = {}
    for name, tensor in state.items():
        if name.startswith("norm"):
            continue
        module, leaf = name.rsplit(".", 1)
        if re.search(r"stages.*norm$|downsample_layers\.[123]\.0$", module):
            module += ".ln"
        elif "pwconv" in module:
            module += ".linear"
        elif leaf == "weight" and not module.startswith("downsample_layers.0"):
            leaf = "kernel"
            columns = tensor.transpose(2, 3).flatten(2)  # (out, in, k * k)
            tensor = columns.permute(2, 1, 0)  # (k * k, in, out)
            tensor = tensor[:, 0] if "dwconv" in module else tensor
        elif leaf == "bias" and not module.startswith("downsample_layers.0"):
            tensor = tensor[None]  # (1, C)
        elif "grn" in module:
            tensor = tensor.reshape(1, -1)  # (1, 4C)
        sparse[f"encoder.{module}.{leaf}"] = tensor.contiguous()
    return sparse


def test_sparse_fcmae(tmp_path):
    source = randomised(ConvNeXt(**V2))
    state = minkowski(source.state_dict())
    assert state["encoder.stages.0.0.dwconv.kernel"].shape == (49, 8)
    assert state["encoder.downsample_layers.1.1.kernel"].shape == (4, 8, 12)
    state |= {"decoder.0.dwconv.weight": torch.randn(4, 1, 7, 7), "mask_token": torch.randn(1, 4)}
    torch.save(dict(model=state), tmp_path / "convnextv2_atto_1k_224_fcmae.pt")
    network, x = loaded(tmp_path / "convnextv2_atto_1k_224_fcmae.pt", **V2), images()
    with torch.no_grad():
        assert_same_maps(network, list(source.forward_stages(x)), x)


@pytest.mark.parametrize("shape", [(1, -1), (-1,), (1, 1, 1, -1)])
def test_dense_fcmae(shape, tmp_path):
    source = randomised(ConvNeXt(**V2))
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("norm")}
    state = {k: v.reshape(shape) if ".grn." in k else v for k, v in state.items()}
    state |= {"proj.weight": torch.randn(4, 20, 1, 1), "mask_token": torch.randn(1, 4, 1, 1)}
    torch.save(dict(model=state), tmp_path / "fcmae.pt")
    network, x = loaded(tmp_path / "fcmae.pt", **V2), images()
    with torch.no_grad():
        assert_same_maps(network, list(source.forward_stages(x)), x)


def test_timm_networks_that_are_not_ours(tmp_path):
    for more, words in (
        (dict(stem_type="overlap_tiered"), "stem.2.weight"),
        (dict(norm_layer="rmsnorm2d", conv_mlp=True), "bias"),
    ):
        torch.save(timm_model(V1, **more).state_dict(), tmp_path / "other.pth")
        with pytest.raises(InputError, match=words) as caught:
            load_pretrained(ConvNeXt(**V1), tmp_path / "other.pth")
        assert caught.value.code == "checkpoint-mismatch"
        assert caught.value.where == str(tmp_path / "other.pth")


def test_every_tag_of_timm_is_recognised():
    """All architectures that timm has weights of; _ols and _rms are refused by name elsewhere."""
    import timm

    tags = timm.list_models("convnext*", exclude_filters=["*_ols", "*_rms*", "convnextv2_small"])
    assert len(tags) > 15
    for tag in tags:
        with torch.device("meta"):
            theirs = timm.create_model(tag)
        names = theirs.state_dict()
        dialect, prefix = recognise(names, tag)
        assert (dialect.name, prefix) == ("timm", "")
        places = [dialect.inward(name) for name in names]
        unplaced = [n for n, p in zip(names, places, strict=True) if p is None]
        assert all(name.startswith("head.pre_logits.") for name in unplaced), (tag, unplaced)
        with torch.device("meta"):
            depths = [len(stage.blocks) for stage in theirs.stages]
            dims = [info["num_chs"] for info in theirs.feature_info]
            ours = ConvNeXt(dict(depths=depths, dims=dims), use_grn="v2" in tag)
        backbone = {p for p in places if p and not p.startswith(("norm", "head"))}
        assert backbone == {n for n in ours.state_dict() if not n.startswith("norm")}, tag


def test_markers_are_unmistakable():
    markers = [dialect.marker for dialect in DIALECTS]
    for one in markers:
        assert sum(one.endswith(other) for other in markers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers", "mmpretrain"])
def test_full_size_tiny(library, tmp_path):
    sizes = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    x = torch.randn(1, 3, 64, 64)
    if library == "timm":
        theirs = timm_model(V1, **sizes)
        maps = stages_of(theirs, theirs.stages, x)
    elif library == "torchvision":
        theirs = torchvision_model(**sizes)
        maps = stages_of(theirs, [theirs.features[i] for i in (1, 3, 5, 7)], x)
    elif library == "transformers":
        more = dict(depths=list(sizes["depths"]), hidden_sizes=list(sizes["dims"]))
        theirs = transformers_model("ConvNextModel", **more)
        maps = stages_of(theirs, theirs.encoder.stages, x)
    else:
        theirs = mmpretrain_model(V1, arch="tiny")
        maps = stages_of(theirs, theirs.stages, x)
    torch.save(theirs.state_dict(), tmp_path / "tiny.pth")
    network = loaded(tmp_path / "tiny.pth", arch="tiny")
    largest = max(float(m.abs().max()) for m in maps)
    with torch.no_grad():
        for mine, expected in zip(network.forward_stages(x), maps, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * largest)
