"""`convnext reproduce`: models of known score from a local server, and planted mistakes.

The ground truth is what the model itself predicts, so its score is known: 100 per cent.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.published import EVALUATED, PICTURES, options, published, put
from support.running import REPOSITORY, Outcome, assert_error, run_here

from backbones.openmmlab.reproduction.figures import (
    IMAGES,
    TOLERANCE,
    Figure,
    conclude,
    published_figures,
    tables_3_and_4,
)
from backbones.openmmlab.reproduction.verdict import HEADER
from backbones.weights import TRAINED, find_trained

SEGMENTOR = "upernet_convnext_t"
DETECTOR = "mask_rcnn_convnext_t"


def reproduce(name: str, *arguments: object, more: tuple[str, ...] = ()) -> Outcome:
    return run_here("reproduce.py", name, *arguments, *options(name, EVALUATED), *more)


def verdict(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.official.json").read_text())


def measured(document: dict) -> dict[str, float]:
    return {figure["name"]: figure["measured"] for figure in document["figures"]}


def planted(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> bytes:
    """Return the published file with a change in its tensors."""
    document = torch.load(io.BytesIO(published(name, "official")), weights_only=False)
    change(document["state_dict"])
    file = io.BytesIO()
    torch.save(document, file)
    return file.getvalue()


def swap_classes(tensors: dict[str, torch.Tensor]) -> None:
    """Move the rows of every class by one."""
    for key, tensor in tensors.items():
        if re.search(r"decode_head\.conv_seg\.|bbox_head\.fc_cls\.", key):
            tensors[key] = tensor.roll(1, 0)


def change_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    tensors["backbone.stages.3.1.pwconv2.weight"].normal_()


@pytest.mark.slow
def test_known_score_and_planted_mistakes(mirror, predicted, tmp_path, monkeypatch):
    name = SEGMENTOR
    put(mirror, name, published(name, "official"))
    out = tmp_path / "out"
    arguments = (name, "--data-mini", predicted)
    outcome = reproduce(*arguments, "--out", out)
    assert outcome.status == 0, outcome.err
    first = verdict(out, name)
    assert first["verdict"] == "a subset, no proof" and not first["is_published_set"]
    assert [figure["expected"] for figure in first["figures"]] == [None, None]
    scores = measured(first)
    assert scores["mIoU"] == 100.0
    assert list(scores) == list(find_trained(name).scores)
    assert {"torch", "suite", "device"} <= set(first["settings"]["machine"])
    assert len(first["settings"]["sha256"]) == 64 and first["settings"]["licence"] == "MIT"

    # The same again: nothing is measured anew.
    report = (out / "runs" / f"{name}.official").stat().st_mtime_ns
    again = reproduce(*arguments, "--out", out)
    assert again.status == 0 and again.out.strip().splitlines()[-1].startswith(f"| {name}.official")
    assert (out / "runs" / f"{name}.official").stat().st_mtime_ns == report
    assert verdict(out, name) == first

    expect = ("--expect", out / f"{name}.official.json")
    agreed = reproduce(*arguments, *expect, "--out", tmp_path / "agreed")
    assert agreed.status == 0, agreed.err
    assert verdict(tmp_path / "agreed", name)["verdict"].endswith(
        "agrees with the expected figures"
    )

    faults = {"classes": swap_classes, "weight": change_a_weight}
    for fault, change in faults.items():
        put(mirror, name, planted(name, change))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / fault))
        assert_differs(reproduce(*arguments, *expect, "--out", tmp_path / f"of_{fault}"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    colours = ("model.data_preprocessor.bgr_to_rgb=False",)
    outcome = reproduce(*arguments, *expect, "--out", tmp_path / "colours", more=colours)
    assert_differs(outcome)
    assert "bgr_to_rgb=False" in outcome.out  # no row hides what was changed


def test_known_score_of_a_detector(mirror, detected, tmp_path, monkeypatch):
    put(mirror, DETECTOR, published(DETECTOR, "official"))
    arguments = (DETECTOR, "--data-mini", detected)
    outcome = reproduce(*arguments, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert measured(verdict(tmp_path / "out", DETECTOR)) == {"box AP": 100.0, "mask AP": 100.0}

    expect = ("--expect", tmp_path / "out" / f"{DETECTOR}.official.json")
    put(mirror, DETECTOR, planted(DETECTOR, swap_classes))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "swapped"))
    assert_differs(reproduce(*arguments, *expect, "--out", tmp_path / "swapped"))


def assert_differs(outcome: Outcome) -> None:
    assert outcome.status == 1, outcome.err
    assert "differs from the expected figures" in outcome.out.splitlines()[-1]


def test_a_subset_is_not_taken_for_the_whole(mirror, predicted, tmp_path):
    put(mirror, SEGMENTOR, published(SEGMENTOR, "official"))
    outcome = reproduce(SEGMENTOR, "--data", predicted, "--out", tmp_path / "out")
    assert_error(outcome, "bad-annotations", PICTURES, IMAGES["segmentation"], "--data-mini")
    assert not [*(tmp_path / "out").glob("*.json")]


def test_verdict_on_the_published_set():
    model = find_trained("upernet_convnext_t")
    figures = published_figures(model)
    assert [(f.name, f.expected) for f in figures] == [("mIoU", 46.0), ("mIoU multi-scale", 46.7)]
    assert conclude(figures, True) == "incomplete"
    close = [figures[0].measure({"mIoU": 46.0 - TOLERANCE}), figures[1].measure({"mIoU": 46.74})]
    assert conclude(close, True) == "reproduced"
    far = [close[0], figures[1].measure({"mIoU": 46.86})]
    assert conclude(far, True) == "not reproduced" and far[1].agrees is False
    (box, mask) = published_figures(find_trained("cascade_convnext_t"))
    assert box.measure({"coco/bbox_mAP": 0.5035}) == Figure("box AP", 50.4, 50.35)
    assert mask.measure({"coco/segm_mAP": 0.4}).agrees is False
    assert [m.config for m in tables_3_and_4()] == [m.config for m in TRAINED][:7] + [
        f"upernet_convnext_{size}" for size in ("t", "s", "b", "b_22k", "l_22k", "xl_22k")
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        ((), "bad-argument", ["--all"]),
        (("--all", "cascade_convnext_t"), "bad-argument", ["--all"]),
        (("cascade_convnxt_t",), "unknown-name", ["cascade_convnext_t"]),
        (("cascade_convnextv2_b",), "not-found", ["cascade_convnextv2_b"]),
        (("cascade_convnext_t", "--expect", "x.json"), "bad-argument", ["--expect"]),
        (("cascade_convnext_t", "--data", "a", "--data-mini", "b"), "bad-argument", ["--data"]),
        (("--all", "--offline", "--data-mini", "x"), "download-failed", ["mask_rcnn"]),
    ],
)
def test_mistakes(arguments, code, names, mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_error(run_here("reproduce.py", *arguments), code, *names)
    assert not [*tmp_path.rglob("*.json")]


def test_data_is_fetched_and_a_wrong_archive_refused(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mirror.files["/zips/ADEChallengeData2016.zip"] = b"<html>please log in</html>"
    put(mirror, SEGMENTOR, published(SEGMENTOR, "official"))
    outcome = reproduce(SEGMENTOR, "--mirror", f"{mirror.address}/zips")
    assert_error(outcome, "download-failed", "ADEChallengeData2016.zip", "MD5")
    left = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert left == {".prepare_data.lock"}


def test_the_page_lists_all_models_and_no_figure_that_nobody_measured():
    page = (REPOSITORY / "docs" / "reproduced.md").read_text()
    assert HEADER in page
    rows = re.findall(
        r"^\| ([\w.]+\.(?:official|openmmlab)) \| ([^|]+) \|(.*)$", page, re.MULTILINE
    )
    assert [name for name, *_ in rows] == [model.name for model in TRAINED]
    for (_, figures, _), model in zip(rows, TRAINED, strict=True):
        assert figures.strip() == ", ".join(f"{v:g} {k}" for k, v in model.scores.items())
