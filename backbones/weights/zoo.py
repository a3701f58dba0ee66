"""List published ConvNeXt weights: their sources, properties and licences.

Names are those of the files or of timm's tags. Figures and addresses are from the READMEs and model
cards of facebookresearch/ConvNeXt, ConvNeXt-V2, dinov3 and EUPE, the papers, and timm 1.0.31 with
its results-imagenet.csv; what none of them states is None.
"""

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from backbones.errors import InputError

# May the weights be used commercially? DINOv3's licence grants it under its own conditions.
LICENCES = {
    "MIT": True,
    "Apache-2.0": True,
    "DINOv3 License": True,
    "CC-BY-NC-4.0": False,
    "FAIR Noncommercial Research License": False,
}
UNSTATED = "not stated"
# In a folder that tools/publish.py made: the fields of its `Weights`.
PUBLISHED = "zoo.json"


class Score(NamedTuple):
    """Hold a published figure in per cent, and the method that reached it."""

    value: float
    method: str


@dataclass(frozen=True)
class Weights:
    """Describe one published file of ConvNeXt weights.

    Attributes:
        name: the file's name without suffix or hash, or timm's tag.
        arch: a name in `backbones.ARCHITECTURES`.
        use_grn: True for V2.
        pretraining: data and method, in the order they were applied.
        resolution: side of the training images in pixels.
        source: http(s) address, `hf-hub:owner/name` or `timm:tag`, as a config's checkpoint.
        licence: licence of the weights, a key of `LICENCES`; for a published folder, any text.
        sha256: of the file, or its first eight digits.
        imagenet: top-1 accuracy on ImageNet-1k, at `resolution` unless the note says otherwise.
        coco: box AP of a detector started from these weights.
        ade20k: mIoU of a segmentor started from these weights.
        timm: timm's tag for a copy of the same weights.
        note: what to know before using them.
    """

    name: str
    arch: str
    use_grn: bool
    pretraining: str
    resolution: int
    source: str
    licence: str
    sha256: str | None = None
    imagenet: float | None = None
    coco: Score | None = None
    ade20k: Score | None = None
    timm: str | None = None
    note: str = ""

    @property
    def commercial(self) -> bool:
        """Return whether the licence is known to permit commercial use, if under conditions."""
        return LICENCES.get(self.licence, False)


def find(name: str) -> Weights:
    """Find weights by name, source or timm tag, or in a folder that tools/publish.py made.

    Raises:
        InputError: there are none; names the nearest ones.
    """
    if weights := _lookup(name):
        return weights
    names = [key for key in _BY_KEY if not re.search("[/:]", key)]
    close = get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(
        f"{name}: no such weights in the zoo{hint} (tools/zoo.py lists them all)",
        code="unknown-name",
        where=name,
    )


def licence_of(source: str) -> str | None:
    """Return the licence of a source or of a copy that kept its name; None if unknown."""
    weights = _lookup(source)
    return weights.licence if weights and weights.licence != UNSTATED else None


def published_in(folder: str | Path) -> list[Weights]:
    """Return the entries of the folders in a folder that tools/publish.py made, and its own.

    Raises:
        InputError: there is none in it, or one cannot be read.
    """
    files = [*Path(folder).glob(PUBLISHED), *sorted(Path(folder).glob(f"*/{PUBLISHED}"))]
    if not files:
        raise InputError(
            f"{folder}: holds no folder made by tools/publish.py", code="not-found", where=folder
        )
    return [_read_published(file) for file in files]


def _read_published(file: Path) -> Weights:
    try:
        fields = json.loads(file.read_text())
        scores = {k: Score(*v) for k in ("coco", "ade20k") if (v := fields.get(k))}
        return Weights(**{**fields, **scores, "source": str(file.parent / fields["source"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: not what tools/publish.py wrote ({error})", code="broken-file", where=file
        ) from None


def _lookup(source: str) -> Weights | None:
    source = source.replace("hf-hub:timm/", "timm:")
    if weights := _BY_KEY.get(source) or _BY_KEY.get(_stem(source)):
        return weights
    if not source or re.match(r"(https?|hf-hub|timm):", source):
        return None
    path = Path(source).expanduser()
    file = (path if path.is_dir() else path.parent) / PUBLISHED
    if not file.is_file():
        return None
    weights = _read_published(file)
    return weights if path.is_dir() or Path(weights.source).name == path.name else None


def _stem(source: str) -> str:
    """Return a path's or URL's file name without suffix and hash; anything else unchanged."""
    file = source.removeprefix("timm:").rsplit("/", 1)[-1]
    return re.sub(r"([-_][0-9a-f]{8})?\.(pth|pt|bin|safetensors)$", "", file)


def _official_v1() -> list[Weights]:
    def entry(stem: str, data: str, resolution: int, **known) -> Weights:
        url = f"https://dl.fbaipublicfiles.com/convnext/{stem}.pth"
        arch = stem.split("_")[1]
        return Weights(stem, arch, False, data, resolution, url, "MIT", **known)

    def cascade(ap: float) -> Score:
        return Score(ap, "Cascade Mask R-CNN")

    def upernet(size: int, miou: float) -> Score:
        return Score(miou, f"UperNet {size}, multi-scale")

    k1, k22, both = "ImageNet-1k", "ImageNet-22k", "ImageNet-22k, ImageNet-1k"
    ema = dict(note="moving average of the weights")
    plain = dict(note="last weights: the official detectors and segmentors start from them")
    table = [
        ("tiny_1k_224_ema", k1, 224, dict(imagenet=82.1, timm="convnext_tiny.fb_in1k", **ema)),
        ("small_1k_224_ema", k1, 224, dict(imagenet=83.1, timm="convnext_small.fb_in1k", **ema)),
        ("base_1k_224_ema", k1, 224, dict(imagenet=83.8, timm="convnext_base.fb_in1k", **ema)),
        ("large_1k_224_ema", k1, 224, dict(imagenet=84.3, timm="convnext_large.fb_in1k", **ema)),
        ("tiny_1k_224", k1, 224, dict(coco=cascade(50.4), ade20k=upernet(512, 46.7), **plain)),
        ("small_1k_224", k1, 224, dict(coco=cascade(51.9), ade20k=upernet(512, 49.6), **plain)),
        ("base_1k_224", k1, 224, dict(coco=cascade(52.7), ade20k=upernet(512, 49.9), **plain)),
        ("base_1k_384", k1, 384, dict(imagenet=85.1)),
        ("large_1k_384", k1, 384, dict(imagenet=85.5)),
        ("tiny_22k_224", k22, 224, dict(timm="convnext_tiny.fb_in22k")),
        ("small_22k_224", k22, 224, dict(timm="convnext_small.fb_in22k")),
        (
            "base_22k_224",
            k22,
            224,
            dict(coco=cascade(54.0), ade20k=upernet(640, 53.1), timm="convnext_base.fb_in22k"),
        ),
        (
            "large_22k_224",
            k22,
            224,
            dict(coco=cascade(54.8), ade20k=upernet(640, 53.7), timm="convnext_large.fb_in22k"),
        ),
        (
            "xlarge_22k_224",
            k22,
            224,
            dict(coco=cascade(55.2), ade20k=upernet(640, 54.0), timm="convnext_xlarge.fb_in22k"),
        ),
    ]
    tuned = [
        ("tiny_22k_1k_224", 82.9),
        ("small_22k_1k_224", 84.6),
        ("base_22k_1k_224", 85.8),
        ("large_22k_1k_224", 86.6),
        ("xlarge_22k_1k_224_ema", 87.0),
        ("tiny_22k_1k_384", 84.1),
        ("small_22k_1k_384", 85.8),
        ("base_22k_1k_384", 86.8),
        ("large_22k_1k_384", 87.5),
        ("xlarge_22k_1k_384_ema", 87.8),
    ]
    for stem, top1 in tuned:
        arch, resolution = stem.split("_")[0], 384 if "384" in stem else 224
        tag = f"convnext_{arch}.fb_in22k_ft_in1k" + ("_384" if resolution == 384 else "")
        table.append((stem, both, resolution, dict(imagenet=top1, timm=tag)))
    return [entry(f"convnext_{stem}", *rest, **known) for stem, *rest, known in table]


def _official_v2() -> list[Weights]:
    def entry(folder: str, stem: str, data: str, resolution: int, **known) -> Weights:
        url = f"https://dl.fbaipublicfiles.com/convnext/convnextv2/{folder}/{stem}.pt"
        arch = stem.split("_")[1]
        return Weights(stem, arch, True, data, resolution, url, "CC-BY-NC-4.0", **known)

    found = []
    boxes = {"base": 52.9, "large": 54.4, "huge": 55.7}
    masks = {"base": 52.1, "large": 53.7, "huge": 55.0}
    top1 = {
        "atto": 76.7,
        "femto": 78.5,
        "pico": 80.3,
        "nano": 81.9,
        "tiny": 83.0,
        "base": 84.9,
        "large": 85.8,
        "huge": 86.3,
    }
    for arch in top1:
        ap = Score(boxes[arch], "Mask R-CNN with LSJ, soft-NMS") if arch in boxes else None
        known = dict(coco=ap, timm=f"convnextv2_{arch}.fcmae", note="self-supervised only")
        stem = f"convnextv2_{arch}_1k_224_fcmae"
        found.append(entry("pt_only", stem, "FCMAE on ImageNet-1k", 224, **known))
    for arch, accuracy in top1.items():
        miou = Score(masks[arch], "UperNet 512, multi-scale") if arch in masks else None
        known = dict(imagenet=accuracy, ade20k=miou, timm=f"convnextv2_{arch}.fcmae_ft_in1k")
        stem = f"convnextv2_{arch}_1k_224_ema"
        found.append(entry("im1k", stem, "FCMAE, ImageNet-1k", 224, **known))
    for arch, resolution, accuracy in [
        ("nano", 224, 82.1),
        ("nano", 384, 83.4),
        ("tiny", 224, 83.9),
        ("tiny", 384, 85.1),
        ("base", 224, 86.8),
        ("base", 384, 87.7),
        ("large", 224, 87.3),
        ("large", 384, 88.2),
        ("huge", 384, 88.7),
        ("huge", 512, 88.9),
    ]:
        tag = f"convnextv2_{arch}.fcmae_ft_in22k_in1k"
        known = dict(imagenet=accuracy, timm=tag if resolution == 224 else f"{tag}_{resolution}")
        if arch == "huge":
            known["note"] = "one of H's two gave UperNet 57.0 mIoU at 640, multi-scale"
        stem = f"convnextv2_{arch}_22k_{resolution}_ema"
        data = "FCMAE, ImageNet-22k, ImageNet-1k"
        found.append(entry("im22k", stem, data, resolution, **known))
    return found


def _dinov3() -> list[Weights]:
    found = []
    conditions = "commercial use is permitted on the licence's conditions"
    for arch, digest, miou in [
        ("tiny", "21b726bb", 42.7),
        ("small", "296db49d", 44.8),
        ("base", "801f2ba9", 46.3),
        ("large", "61fa432d", 47.8),
    ]:
        stem = f"dinov3_convnext_{arch}_pretrain_lvd1689m"
        folder = f"https://dl.fbaipublicfiles.com/dinov3/dinov3_convnext_{arch}"
        hub = f"dinov3-convnext-{arch}-pretrain-lvd1689m"
        tag = f"convnext_{arch}.dinov3_lvd1689m"
        gated = f"gated: ask for access, then give the file you received; {conditions}"
        for name, source, sha256, note in [
            (stem, f"{folder}/{stem}-{digest}.pth", digest, gated),
            (hub, f"hf-hub:facebook/{hub}", None, f"gated: log in to the hub first; {conditions}"),
            (tag, f"timm:{tag}", None, conditions),
        ]:
            found.append(
                Weights(
                    name,
                    arch,
                    False,
                    "DINOv3 distillation on LVD-1689M",
                    224,
                    source,
                    "DINOv3 License",
                    sha256,
                    ade20k=Score(miou, "linear, frozen"),
                    note=note,
                )
            )
    return found


def _eupe() -> list[Weights]:
    found = []
    for letter, arch, miou in [("T", "tiny", 43.5), ("S", "small", 46.8), ("B", "base", 48.9)]:
        official, tag = f"EUPE-ConvNeXt-{letter}", f"convnext_{arch}.eupe_lvd1689m"
        for name, source in [(official, f"hf-hub:facebook/{official}"), (tag, f"timm:{tag}")]:
            found.append(
                Weights(
                    name,
                    arch,
                    False,
                    "EUPE distillation on LVD-1689M",
                    256,
                    source,
                    "FAIR Noncommercial Research License",
                    ade20k=Score(miou, "linear, frozen"),
                )
            )
    return found


def _timm() -> list[Weights]:
    clip = "normalise images with CLIP's mean and std"
    small_release = (
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights"
    )
    found = [
        Weights(
            f"convnext_{arch}_{file}",
            arch,
            False,
            "ImageNet-1k",
            224,
            f"{small_release}/convnext_{arch}_{file}-{digest}.pth",
            "Apache-2.0",
            digest,
            top1,
            timm=f"convnext_{arch}.{file}_in1k",
            note="timm's own training; top-1 at 288",
        )
        for arch, file, digest, top1 in [
            ("atto", "d2", "01bb0f51", 77.008),
            ("femto", "d1", "d71d5b4c", 78.716),
            ("pico", "d1", "10ad7f0d", 80.414),
            ("nano", "d1h", "7eb4bdea", 81.482),
        ]
    ]
    in12k, in12k_1k = "ImageNet-12k", "ImageNet-12k, ImageNet-1k"
    laion, laion_12k = "CLIP on LAION-2B", "CLIP on LAION-2B, ImageNet-12k"
    laion_1k, laion_all = f"{laion}, ImageNet-1k", f"{laion_12k}, ImageNet-1k"
    aesthetic = "CLIP on LAION-A"
    at_288 = "top-1 at 288"
    base, large = "convnext_base.clip_", "convnext_large_mlp.clip_"
    for tag, data, resolution, top1, note in [
        ("convnext_nano.in12k", in12k, 224, None, ""),
        ("convnext_tiny.in12k", in12k, 224, None, ""),
        ("convnext_small.in12k", in12k, 224, None, ""),
        ("convnext_nano.in12k_ft_in1k", in12k_1k, 224, 82.862, at_288),
        ("convnext_tiny.in12k_ft_in1k", in12k_1k, 224, 84.450, at_288),
        ("convnext_small.in12k_ft_in1k", in12k_1k, 224, 85.330, at_288),
        ("convnext_tiny.in12k_ft_in1k_384", in12k_1k, 384, 85.122, ""),
        ("convnext_small.in12k_ft_in1k_384", in12k_1k, 384, 86.182, ""),
        (f"{base}laion2b", laion, 256, None, clip),
        (f"{base}laion2b_augreg", laion, 256, None, clip),
        (f"{base}laiona", aesthetic, 256, None, clip),
        (f"{base}laiona_320", aesthetic, 320, None, clip),
        (f"{base}laiona_augreg_320", aesthetic, 320, None, clip),
        (f"{base}laion2b_augreg_ft_in12k", laion_12k, 256, None, clip),
        (f"{base}laion2b_augreg_ft_in1k", laion_1k, 256, 86.158, clip),
        (f"{base}laiona_augreg_ft_in1k_384", f"{aesthetic}, ImageNet-1k", 384, 86.502, clip),
        (f"{base}laion2b_augreg_ft_in12k_in1k", laion_all, 256, 86.370, clip),
        (f"{base}laion2b_augreg_ft_in12k_in1k_384", laion_all, 384, 87.134, clip),
        (f"{large}laion2b_augreg", laion, 256, None, clip),
        (f"{large}laion2b_ft_320", laion, 320, None, clip),
        (f"{large}laion2b_ft_soup_320", laion, 320, None, clip),
        (f"{large}laion2b_soup_ft_in12k_320", laion_12k, 320, None, clip),
        (f"{large}laion2b_augreg_ft_in12k_384", laion_12k, 384, None, clip),
        (f"{large}laion2b_soup_ft_in12k_384", laion_12k, 384, None, clip),
        (f"{large}laion2b_augreg_ft_in1k", laion_1k, 256, 87.334, clip),
        (f"{large}laion2b_augreg_ft_in1k_384", laion_1k, 384, 87.848, clip),
        (f"{large}laion2b_soup_ft_in12k_in1k_320", laion_all, 320, 87.958, clip),
        (f"{large}laion2b_soup_ft_in12k_in1k_384", laion_all, 384, 88.306, clip),
    ]:
        arch = re.split("[._]", tag)[1]
        known = dict(imagenet=top1, note=note)
        found.append(
            Weights(tag, arch, False, data, resolution, f"timm:{tag}", "Apache-2.0", **known)
        )
    return found


ZOO = (*_official_v1(), *_official_v2(), *_dinov3(), *_eupe(), *_timm())

_BY_KEY = {
    key: weights
    for weights in ZOO
    for key in (weights.name, weights.source, weights.timm, weights.timm and f"timm:{weights.timm}")
    if key
}
