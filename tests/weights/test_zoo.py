"""The table of published weights against timm's own, the search in it, the tool that shows it."""

import json
import re
import subprocess
import sys

import pytest
import timm
from support.running import REPOSITORY, assert_error, run_here

from backbones import ARCHITECTURES, InputError
from backbones.weights import ZOO, Score, Weights, find, licence_of
from backbones.weights.zoo import LICENCES

NAMES = [weights.name for weights in ZOO]
TIMM_LICENCES = {
    "apache-2.0": "Apache-2.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "dinov3-license": "DINOv3 License",
    "fair-noncommercial-research-license": "FAIR Noncommercial Research License",
}
FB = "https://dl.fbaipublicfiles.com/convnext/"


def timm_tag(weights: Weights) -> str | None:
    return weights.timm or (weights.source.startswith("timm:") and weights.name) or None


def test_names_sources_and_tags_are_each_used_once():
    for field in ("name", "source", "timm"):
        values = [getattr(weights, field) for weights in ZOO if getattr(weights, field)]
        assert len(values) == len(set(values))
    tags = [tag for weights in ZOO if (tag := timm_tag(weights))]
    assert len(tags) == len(set(tags)) > 70


@pytest.mark.parametrize("name", NAMES)
def test_entry_agrees_with_its_own_name(name):
    weights = find(name)
    arch = re.search(r"convnext(?:v2)?[_-]([a-z]+)", name, re.I)[1].lower()
    arch = {"t": "tiny", "s": "small", "b": "base"}.get(arch, arch)
    assert weights.arch == arch in ARCHITECTURES
    assert weights.use_grn == ("convnextv2" in name)
    assert weights.licence in LICENCES and weights.commercial is LICENCES[weights.licence]
    in_name = [
        int(part) for part in re.split(r"[_-]", name) if part in ("224", "320", "384", "512")
    ]
    assert weights.resolution == in_name[-1] if in_name else weights.resolution in (224, 256)
    if weights.licence == "MIT":
        assert weights.source == f"{FB}{name}.pth"
    if weights.licence == "CC-BY-NC-4.0":
        folder = {"fcmae": "pt_only", "1k": "im1k", "22k": "im22k"}[
            "fcmae" if name.endswith("fcmae") else name.split("_")[2]
        ]
        assert weights.source == f"{FB}convnextv2/{folder}/{name}.pt"
    if weights.sha256:
        assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", weights.sha256)
        assert weights.source.endswith(f"{name}-{weights.sha256[:8]}.pth")
    assert weights.imagenet is None or 75 < weights.imagenet < 89
    for score in (weights.coco, weights.ade20k):
        assert score is None or isinstance(score, Score) and 40 < score.value < 60 and score.method


@pytest.mark.parametrize("name", [weights.name for weights in ZOO if timm_tag(weights)])
def test_entry_agrees_with_timm(name):
    weights = find(name)
    tag = timm_tag(weights)
    published = timm.models.get_pretrained_cfg(tag, allow_unregistered=False)
    assert published is not None and f"{published.architecture}.{published.tag}" == tag
    assert published.input_size == (3, weights.resolution, weights.resolution)
    if weights.source.startswith("http"):
        assert published.url == weights.source
    else:
        assert published.hf_hub_id == f"timm/{tag}"
    licence = TIMM_LICENCES[published.license]
    # timm states its own licence for the MIT weights; the owner's is what counts.
    assert licence == ("Apache-2.0" if weights.licence == "MIT" else weights.licence)
    imagenet_mean = published.mean == timm.data.IMAGENET_DEFAULT_MEAN
    assert imagenet_mean != ("CLIP's mean" in weights.note)


@pytest.mark.parametrize(
    "library", ["convnextv2_", "convnext_*.dinov3_*", "convnext_*.eupe_*", "convnext_*.fb_*"]
)
def test_nothing_of_timms_is_missing(library):
    tags = timm.list_models(f"{library}*" if "*" not in library else library, pretrained=True)
    known = {timm_tag(weights) for weights in ZOO}
    assert tags and set(tags) <= known


@pytest.mark.parametrize(
    ("name", "source", "imagenet", "coco", "ade20k"),
    [
        ("convnext_base_1k_224", FB + "convnext_base_1k_224.pth", None, 52.7, 49.9),
        ("convnext_large_1k_384", FB + "convnext_large_1k_384.pth", 85.5, None, None),
        ("convnext_xlarge_22k_224", FB + "convnext_xlarge_22k_224.pth", None, 55.2, 54.0),
        (
            "convnext_xlarge_22k_1k_384_ema",
            FB + "convnext_xlarge_22k_1k_384_ema.pth",
            87.8,
            None,
            None,
        ),
        (
            "convnextv2_huge_1k_224_fcmae",
            FB + "convnextv2/pt_only/convnextv2_huge_1k_224_fcmae.pt",
            None,
            55.7,
            None,
        ),
        (
            "convnextv2_large_1k_224_ema",
            FB + "convnextv2/im1k/convnextv2_large_1k_224_ema.pt",
            85.8,
            None,
            53.7,
        ),
        (
            "convnextv2_huge_22k_512_ema",
            FB + "convnextv2/im22k/convnextv2_huge_22k_512_ema.pt",
            88.9,
            None,
            None,
        ),
        (
            "convnext_large.dinov3_lvd1689m",
            "timm:convnext_large.dinov3_lvd1689m",
            None,
            None,
            47.8,
        ),
        ("EUPE-ConvNeXt-B", "hf-hub:facebook/EUPE-ConvNeXt-B", None, None, 48.9),
        (
            "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
            "timm:convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
            87.134,
            None,
            None,
        ),
    ],
)
def test_published_figures(name, source, imagenet, coco, ade20k):
    weights = find(name)
    assert (weights.source, weights.imagenet) == (source, imagenet)
    assert (weights.coco and weights.coco.value) == coco
    assert (weights.ade20k and weights.ade20k.value) == ade20k


def test_find_takes_names_sources_and_tags():
    weights = find("convnextv2_base_1k_224_ema")
    for other in (weights.source, "timm:convnextv2_base.fcmae_ft_in1k", weights.timm):
        assert find(other) is weights
    with pytest.raises(InputError) as caught:
        find("convnextv2_bas_1k_224_fcmae")
    message = str(caught.value)
    assert message.startswith("convnextv2_bas_1k_224_fcmae: ")
    assert "convnextv2_base_1k_224_fcmae" in message and "\n" not in message
    with pytest.raises(InputError) as caught:
        find("resnet50")
    assert "convnext" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        (FB + "convnext_tiny_1k_224.pth", "MIT"),
        ("timm:convnext_tiny.fb_in1k", "MIT"),
        ("hf-hub:timm/convnextv2_atto.fcmae", "CC-BY-NC-4.0"),
        ("~/downloads/convnextv2_huge_22k_512_ema.pt", "CC-BY-NC-4.0"),
        ("weights/dinov3_convnext_base_pretrain_lvd1689m-801f2ba9.pth", "DINOv3 License"),
        ("hf-hub:facebook/dinov3-convnext-small-pretrain-lvd1689m", "DINOv3 License"),
        ("EUPE-ConvNeXt-T.pt", "FAIR Noncommercial Research License"),
        ("timm:convnext_tiny.eupe_lvd1689m", "FAIR Noncommercial Research License"),
        ("timm:convnext_base.clip_laion2b_augreg", "Apache-2.0"),
        ("work_dirs/cascade_convnext_t/epoch_36.pth", None),
        ("timm:resnet50.a1_in1k", None),
        ("", None),
    ],
)
def test_licence_of(source, licence):
    assert licence_of(source) == licence


def test_module_needs_no_library():
    """The loader asks it at every load: the standard library and our errors are all it imports."""
    code = (
        "import sys, types\n"
        "for name, folder in (('backbones', '.'), ('backbones.weights', 'weights')):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [{str(REPOSITORY / 'backbones')!r} + '/' + folder]\n"
        "import backbones.weights.zoo\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'numpy', 'mmengine', 'timm', 'rich') or m.startswith('backbones.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ("errors", "launchers", "weights", "weights.names", "weights.trained", "weights.zoo")
    assert done.stdout.strip() == str([f"backbones.{name}" for name in names])


def listed(*arguments: str) -> list[dict]:
    outcome = run_here("zoo.py", "--json", *arguments)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_json_holds_every_entry_and_field():
    rows = listed()
    assert [row["name"] for row in rows] == NAMES
    (row,) = (row for row in rows if row["name"] == "convnextv2_base_1k_224_fcmae")
    assert row == {
        "name": "convnextv2_base_1k_224_fcmae",
        "arch": "base",
        "use_grn": True,
        "pretraining": "FCMAE on ImageNet-1k",
        "resolution": 224,
        "source": FB + "convnextv2/pt_only/convnextv2_base_1k_224_fcmae.pt",
        "licence": "CC-BY-NC-4.0",
        "commercial": False,
        "sha256": None,
        "imagenet": None,
        "coco": {"value": 52.9, "method": "Mask R-CNN with LSJ, soft-NMS"},
        "ade20k": None,
        "timm": "convnextv2_base.fcmae",
        "note": "self-supervised only",
    }


def test_commercial_ok_leaves_out_v2_and_eupe():
    """DINOv3's licence, section 1.a, grants use without a limit to research or non-commerce."""
    rows = listed("--commercial-ok")
    left_out = set(NAMES) - {row["name"] for row in rows}
    assert left_out == {name for name in NAMES if "convnextv2" in name or "eupe" in name.lower()}
    assert {row["licence"] for row in rows} == {"MIT", "Apache-2.0", "DINOv3 License"}


def test_task_and_arch():
    rows = listed("--task", "detection", "--arch", "base")
    assert [(row["name"], row["coco"]["value"]) for row in rows] == [
        ("convnext_base_22k_224", 54.0),
        ("convnextv2_base_1k_224_fcmae", 52.9),
        ("convnext_base_1k_224", 52.7),
    ]
    rows = listed("--task", "segmentation", "--commercial-ok", "--arch", "large")
    assert [row["ade20k"]["value"] for row in rows] == [53.7, 47.8, 47.8, 47.8]
    best = listed("--task", "classification")[0]
    assert (best["name"], best["imagenet"]) == ("convnextv2_huge_22k_512_ema", 88.9)


def test_table_and_details():
    outcome = run_here("zoo.py", "--arch", "xlarge")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    (line,) = (line for line in lines if line.startswith("convnext_xlarge_22k_224 "))
    assert "xlarge V1" in line and "55.2 Cascade Mask R-CNN" in line and "MIT" in line
    assert lines[-1].startswith(f"3 of {len(ZOO)};")
    outcome = run_here("zoo.py", "convnext_tiny.dinov3_lvd1689m")
    assert re.search(r"source +timm:convnext_tiny.dinov3_lvd1689m", outcome.out)
    assert re.search(r"ade20k +42.7 linear, frozen", outcome.out)
    assert "sha256" not in outcome.out
    outcome = run_here("zoo.py", "convnext_tiny.dinov3_lvd1689")
    assert_error(outcome, "unknown-name", "convnext_tiny.dinov3_lvd1689m")
