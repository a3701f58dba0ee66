"""List the published trained detectors and segmentors by the configs that they belong to.

Scores and URLs are those of the publishers' tables: the READMEs of object_detection and
semantic_segmentation in facebookresearch/ConvNeXt, and the metafiles of mmdet and mmseg. The
official files have no published checksum; OpenMMLab's names end in the first digits of their
SHA-256.
"""

from dataclasses import dataclass

from .names import hash_in_name, stem_of

OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"
MMDET = "https://download.openmmlab.com/mmdetection/v2.0/convnext"
MMSEG = "https://mmassets.onedl.ai/mmsegmentation/v0.5/convnext"
# A config's name alone stands for the model of its first publisher.
PUBLISHERS = {
    "official": ("facebookresearch/ConvNeXt", "MIT"),
    "openmmlab": ("OpenMMLab", "Apache-2.0"),
}


@dataclass(frozen=True)
class TrainedModel:
    """Describe a published file of a whole trained model.

    Attributes:
        config: name of the suite's config that the model belongs to.
        publisher: a key of `PUBLISHERS`.
        scores: published scores in per cent: box and mask AP on COCO's val2017, or mIoU on
            ADE20K's validation images, single-scale and multi-scale with flips.
        source: URL of the file.
    """

    config: str
    publisher: str
    scores: dict[str, float]
    source: str

    @property
    def name(self) -> str:
        """Return the config and the publisher, since one config may have several models."""
        return f"{self.config}.{self.publisher}"

    @property
    def licence(self) -> str:
        return PUBLISHERS[self.publisher][1]

    @property
    def sha256(self) -> str | None:
        """Return the first digits of the file's SHA-256 if its name states them."""
        return hash_in_name(self.source)

    @property
    def score_text(self) -> str:
        return ", ".join(f"{value:g} {metric}" for metric, value in self.scores.items())

    def line(self) -> str:
        """Return a line with publisher, licence, scores and the config's other models."""
        others = [m.name for m in TRAINED if m.config == self.config and m is not self]
        more = f"; also published: {', '.join(others)}" if others else ""
        by, licence = PUBLISHERS[self.publisher]
        return f"{self.name}: trained by {by}, licence {licence}, {self.score_text}{more}"


def find_trained(name: str) -> TrainedModel | None:
    """Return the trained model with a name, a config's name or a URL, or None."""
    return _BY_NAME.get(name)


def trained_file(source: str) -> TrainedModel | None:
    """Return the trained model of a URL, or of a local copy with the same file name, or None."""
    return _BY_FILE.get(stem_of(source))


def _detectors() -> list[TrainedModel]:
    def official(config: str, stem: str, box: float, mask: float) -> TrainedModel:
        scores = {"box AP": box, "mask AP": mask}
        return TrainedModel(config, "official", scores, f"{OFFICIAL}/coco/{stem}_3x.pth")

    def openmmlab(config: str, stem: str, end: str, box: float, mask: float) -> TrainedModel:
        scores = {"box AP": box, "mask AP": mask}
        return TrainedModel(config, "openmmlab", scores, f"{MMDET}/{stem}/{stem}_{end}.pth")

    cascade, giou = "cascade_mask_rcnn_convnext", "p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco"
    mask_rcnn = "mask_rcnn_convnext-t_p4_w7_fpn_fp16_ms-crop_3x_coco"
    return [
        official("mask_rcnn_convnext_t", "mask_rcnn_convnext_tiny_1k", 46.2, 41.7),
        official("cascade_convnext_t", f"{cascade}_tiny_1k", 50.4, 43.7),
        official("cascade_convnext_s", f"{cascade}_small_1k", 51.9, 45.0),
        official("cascade_convnext_b", f"{cascade}_base_1k", 52.7, 45.6),
        official("cascade_convnext_b_22k", f"{cascade}_base_22k", 54.0, 46.9),
        official("cascade_convnext_l_22k", f"{cascade}_large_22k", 54.8, 47.6),
        official("cascade_convnext_xl_22k", f"{cascade}_xlarge_22k", 55.2, 47.7),
        openmmlab("mask_rcnn_convnext_t", mask_rcnn, "20220426_154953-050731f4", 46.2, 41.7),
        openmmlab(
            "cascade_convnext_t", f"{cascade}-t_{giou}", "20220509_204200-8f07c40b", 50.3, 43.6
        ),
        openmmlab(
            "cascade_convnext_s", f"{cascade}-s_{giou}", "20220510_201004-3d24f5a4", 51.8, 44.8
        ),
    ]


def _segmentors() -> list[TrainedModel]:
    def scores(single: float, several: float) -> dict[str, float]:
        return {"mIoU": single, "mIoU multi-scale": several}

    found = []
    for letter, stem, single, several in [
        ("t", "tiny_1k_512x512", 46.0, 46.7),
        ("s", "small_1k_512x512", 48.7, 49.6),
        ("b", "base_1k_512x512", 49.1, 49.9),
        ("b_22k", "base_22k_640x640", 52.6, 53.1),
        ("l_22k", "large_22k_640x640", 53.2, 53.7),
        ("xl_22k", "xlarge_22k_640x640", 53.6, 54.0),
    ]:
        url = f"{OFFICIAL}/ade20k/upernet_convnext_{stem}.pth"
        config = f"upernet_convnext_{letter}"
        found.append(TrainedModel(config, "official", scores(single, several), url))
    for letter, arch, size, end, single, several in [
        ("t", "tiny", 512, "20220227_124553-cad485de", 46.11, 46.62),
        ("s", "small", 512, "20220227_131208-1b1e394f", 48.56, 49.02),
        ("b", "base", 512, "20220227_181227-02a24fc6", 48.71, 49.54),
        ("b_22k", "base", 640, "20220227_182859-9280e39b", 52.13, 52.66),
        ("l_22k", "large", 640, "20220226_040532-e57aa54d", 53.16, 53.38),
        ("xl_22k", "xlarge", 640, "20220226_080344-95fc38c2", 53.58, 54.11),
    ]:
        stem = f"upernet_convnext_{arch}_fp16_{size}x{size}_160k_ade20k"
        url, config = f"{MMSEG}/{stem}/{stem}_{end}.pth", f"upernet_convnext_{letter}"
        found.append(TrainedModel(config, "openmmlab", scores(single, several), url))
    return found


TRAINED = (*_detectors(), *_segmentors())

_BY_FILE = {stem_of(model.source): model for model in TRAINED}
_BY_NAME: dict[str, TrainedModel] = {}
for _model in TRAINED:
    for _key in (_model.config, _model.name, _model.source):
        _BY_NAME.setdefault(_key, _model)
