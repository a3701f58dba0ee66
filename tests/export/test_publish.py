"""Publishing: what is in the folder, what is said of it, and that everything reads it."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.running import REPOSITORY, SEGMENTATION, assert_error, run_here, run_tool

from backbones import ConvNeXt, InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.export.publishing import publish
from backbones.weights import find, licence_of, load_pretrained, published_in, read_checkpoint
from backbones.weights.zoo import PUBLISHED

NARROW = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
METRICS = {"mIoU": 41.25, "aAcc": 80.5, "mAcc": float("nan")}
V2 = "https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A narrow segmentor's config and a checkpoint as mmengine leaves it, with an average."""
    from mmengine.registry import MODELS, DefaultScope

    from backbones.openmmlab.config.machine import fit_to_machine

    folder = tmp_path_factory.mktemp("run")
    path = folder / "narrow.py"
    path.write_text(
        f"_base_ = {str(SEGMENTATION)!r}\n"
        f"model = dict(backbone=dict(arch=dict({NARROW!r}, _delete_=True)),"
        "auxiliary_head=dict(in_channels=24),"
        "decode_head=dict(in_channels=[8, 16, 24, 32], channels=16))\n"
    )
    config = load_config(path)
    config.launcher = "none"
    fit_to_machine(config)
    DefaultScope.get_instance("publish-test", scope_name="mmseg")
    model = MODELS.build(config.model)
    state = model.state_dict()
    checkpoint = dict(
        meta=dict(
            cfg=config.pretty_text + f"\ninit_from = {V2!r}\n",
            dataset_meta=dict(classes=config.test_dataloader.dataset.metainfo.classes),
        ),
        state_dict=state,
        ema_state_dict={k: torch.zeros_like(v) for k, v in state.items()},
        optimizer=dict(state={0: torch.ones(1000, 100)}),
        message_hub=dict(),
    )
    torch.save(checkpoint, folder / "iter_6.pth")
    return path, folder / "iter_6.pth"


@pytest.fixture
def metrics(trained) -> Path:
    path = trained[1].with_name("metrics.json")
    path.write_text(json.dumps(METRICS))
    yield path
    path.unlink(missing_ok=True)


def card_of(folder: Path) -> tuple[dict, str]:
    _, facts, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(facts), text


def test_folder_holds_the_weights_and_says_what_they_are(trained, metrics, tmp_path):
    config, checkpoint = trained
    folder = tmp_path / "published" / "narrow"
    done = run_here("publish.py", config, checkpoint, "--out", folder)
    assert done.status == 0, done.err
    (weights,) = folder.glob("*.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.name == f"narrow-{digest[:8]}.safetensors"
    kept = load_file(weights)
    expected = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[k], v) for k, v in expected.items())
    assert any(bool(v.any()) for v in kept.values())
    assert weights.stat().st_size < checkpoint.stat().st_size / 2
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["README.md", "config.py", "recipe.py", PUBLISHED, weights.name]
    )

    facts, text = card_of(folder)
    assert facts["license"] == "cc-by-nc-4.0" and facts["pipeline_tag"] == "image-segmentation"
    (result,) = facts["model-index"][0]["results"]
    figures = {m["name"]: m["value"] for m in result["metrics"]}
    assert figures == {"mIoU": 41.25, "aAcc": 80.5}
    assert result["dataset"]["name"] == "own data" and "datasets" not in facts
    for words in (digest, "CC-BY-NC-4.0: not for commercial use", V2, "(EMA)", "41.2500"):
        assert words in text
    assert str(tmp_path) not in text and str(checkpoint.parent) not in text
    assert "licence: CC-BY-NC-4.0" in done.out and "scores: 2" in done.out

    # The zoo: by its folder and by its file, listed beside others, with the licence that goes on.
    entry = find(str(folder))
    assert (entry.name, entry.sha256, entry.source) == ("narrow", digest, str(weights))
    assert entry.ade20k is None and not entry.commercial and "FCMAE" in entry.pretraining
    assert licence_of(str(weights)) == "CC-BY-NC-4.0"
    assert licence_of(str(folder / "other.pth")) is None
    assert [w.name for w in published_in(folder.parent)] == ["narrow"]
    listed = run_here("zoo.py", "--published", folder.parent)
    assert listed.status == 0 and "1 of 1" in listed.out and "narrow" in listed.out
    assert json.loads(run_here("zoo.py", "--json", folder).out)[0]["sha256"] == digest

    # A backbone starts from it.
    backbone = ConvNeXt(NARROW)
    coverage = load_pretrained(backbone, weights)
    assert not coverage.initial
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[f"backbone.{name}"])
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError) as caught:  # by its name alone it is worth a warning
        read_checkpoint(weights, sha256=digest)
    assert caught.value.code == "broken-file" and str(weights) in str(caught.value)


def test_unknown_scores_and_licences_are_said_to_be(trained, tmp_path):
    config, checkpoint = trained
    content = torch.load(checkpoint, weights_only=False)
    bare = tmp_path / "run" / "bare.pth"
    bare.parent.mkdir()
    weights = {"state_dict": content["state_dict"]}
    torch.save(weights, bare)
    loaded = load_config(config)
    published = publish(loaded, bare, tmp_path / "a")
    facts, text = card_of(tmp_path / "a")
    assert "model-index" not in facts and "license" not in facts
    assert "metrics.json" in text and "EMA" not in text
    assert any("scores" in line and "metrics.json" in line for line in published.lines)
    assert licence_of(str(published.weights)) is None and not find(str(tmp_path / "a")).commercial

    # Figures of an earlier checkpoint are not this one's.
    metrics = bare.with_name("metrics.json")
    metrics.write_text(json.dumps(METRICS))
    os.utime(metrics, (1, 1))
    publish(load_config(config), bare, tmp_path / "b", licence="MIT")
    facts, text = card_of(tmp_path / "b")
    assert "model-index" not in facts and facts["license"] == "mit"
    publish(load_config(config), bare, tmp_path / "c", metrics=metrics)
    assert "41.25" in card_of(tmp_path / "c")[1]


def test_official_average_is_what_is_published(trained, tmp_path):
    """Under `model_ema` beside `model`, as the official code saves it."""
    config, checkpoint = trained
    averaged = torch.load(checkpoint, weights_only=False)["state_dict"]
    path = tmp_path / "checkpoint-best.pth"
    plain = {k: torch.zeros_like(v) for k, v in averaged.items()}
    torch.save({"model": plain, "model_ema": averaged}, path)
    published = publish(load_config(config), path, tmp_path / "out")
    kept = load_file(published.weights)
    assert all(torch.equal(kept[k], v) for k, v in averaged.items())
    assert "the EMA" in published.lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (("--licence", "MIT"), "bad-argument", ("--licence", "MIT", "CC-BY-NC")),
        (("--metrics", "nowhere.json"), "not-found", ("nowhere.json",)),
        (
            ("--cfg-options", "model.decode_head.channels=8"),
            None,
            ("iter_6.pth", "SlidingWindowSegmentor"),
        ),
        (
            (
                "--cfg-options",
                "test_dataloader.dataset.metainfo.classes=(a,b,c,d,e,f,g,h)",
            ),
            "class-mismatch",
            ("iter_6.pth", "circle, square, triangle", "a, b, c"),
        ),
    ],
    ids=["licence", "metrics", "another model", "other classes"],
)
def test_mistakes_leave_nothing(arguments, code, names, trained, tmp_path):
    folder = tmp_path / "out"
    done = run_here("publish.py", *trained, "--out", folder, *arguments)
    assert_error(done, code or done.code, *names)
    assert not list(tmp_path.iterdir())


def test_existing_folders_and_broken_entries(trained, tmp_path):
    done = run_here("publish.py", *trained, "--out", tmp_path)
    assert_error(done, "bad-argument", tmp_path)
    with pytest.raises(InputError) as caught:
        published_in(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / PUBLISHED).write_text('{"name": "x"}')
    with pytest.raises(InputError) as caught:
        published_in(tmp_path)
    assert str(tmp_path / PUBLISHED) in str(caught.value)


@pytest.mark.slow
def test_published_weights_score_the_same(trained, shapes, tmp_path):
    """tools/test.py with the published config and weights, in processes of their own."""
    config, checkpoint = trained
    folder = tmp_path / "narrow"
    assert run_here("publish.py", config, checkpoint, "--out", folder).status == 0
    (weights,) = folder.glob("*.safetensors")
    quick = ("test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False")
    scores = []
    for model in ((config, checkpoint), (folder / "config.py", weights)):
        work_dir = tmp_path / f"work{len(scores)}"
        options = ("--data", shapes, "--work-dir", work_dir, "--cfg-options", *quick)
        done = run_tool("test.py", *model, *options, cwd=REPOSITORY)
        assert done.status == 0, done.err
        scores.append(json.loads((work_dir / "metrics.json").read_text()))
    assert scores[0] == scores[1] and scores[0]["aAcc"] > 0
