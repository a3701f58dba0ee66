"""Pipelines and models of bands: what they leave out, how they warp, and RGB's equal results."""

import inspect
import json
import random
import re

import cv2
import mmdet.registry as mmdet_registry
import mmseg.registry as mmseg_registry
import numpy as np
import pytest
import tifffile
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from support.drawn_bands import NAMES, draw_bands, write_tiff
from support.file_server import serving
from support.small_runs import write_config

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.data.band_pipelines import (
    COLOUR_ONLY,
    refuse_colour_transforms,
    with_bands,
)
from backbones.openmmlab.data.bands import Bands
from backbones.openmmlab.data.config_edits import set_class_count
from backbones.openmmlab.data.in_threes import InThrees
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.registration import enter_scope

RNG = np.random.default_rng(0)


class TestGeometry:
    """Transforms that OpenCV limits to four channels are the same for any number of bands."""

    @staticmethod
    def run(step: dict, image: np.ndarray, fill: tuple = ()) -> tuple[np.ndarray, np.ndarray]:
        boxes = HorizontalBoxes(np.array([[5, 5, 40, 50]], np.float32))
        results = dict(
            img=image.copy(), img_shape=image.shape[:2], ori_shape=image.shape[:2],
            gt_seg_map=np.ones(image.shape[:2], np.uint8), seg_fields=["gt_seg_map"],
            gt_bboxes=boxes, gt_bboxes_labels=np.array([0]), gt_ignore_flags=np.array([False]),
        )  # fmt: skip
        with DefaultScope.overwrite_default_scope(step.get("_scope_", "mmdet")):
            transform = InThrees({k: v for k, v in step.items() if k != "_scope_"}, fill)
            np.random.seed(3)
            random.seed(3)
            found = transform.transform(results)
        assert found is not None
        return found["img"], found["gt_bboxes"].tensor.numpy()

    @pytest.mark.parametrize(
        "step",
        [
            dict(type="Rotate", prob=1.0, level=5),
            dict(type="ShearX", prob=1.0, level=5),
            dict(type="TranslateY", prob=1.0, level=5),
            dict(type="RandomAffine", border=(0, 0)),
            dict(type="Expand", prob=1.0, seg_ignore_label=255),
            dict(type="CutOut", n_holes=2, cutout_shape=(8, 8)),
            dict(type="Pad", size=(80, 90)),
            dict(type="RandomRotate", prob=1.0, degree=20, _scope_="mmseg"),
            dict(type="RandomCutOut", prob=1.0, n_holes=2, cutout_shape=(8, 8), _scope_="mmseg"),
        ],
        ids=lambda step: step["type"],
    )
    def test_each_band_moves_as_in_an_image_of_three(self, step, tmp_path):
        import backbones.openmmlab.detection
        import backbones.openmmlab.segmentation  # noqa: F401  registers its data preprocessor and heads

        fill = tuple(range(1, 14))
        bands = Bands(NAMES[13], NAMES[13], "float32", fill=fill)
        (step,) = with_bands([step], bands, {})[0]
        inner = {**step["transform"], "_scope_": step["transform"].get("_scope_", "mmdet")}
        image = RNG.random((60, 70, 13)).astype(np.float32) * 1000
        found, boxes = self.run(inner, image, fill)
        assert found.dtype == np.float32 and found.shape[2] == 13
        for band in (0, 4, 12):
            alone, expected = self.run(inner, image[..., band : band + 1], fill[band : band + 1])
            np.testing.assert_array_equal(found[..., band], alone[..., 0])
            np.testing.assert_array_equal(boxes, expected)
        # Some pixels are outside the image, and have the fill.
        assert not np.array_equal(found, image)
        outside = (found == np.array(fill, np.float32)).all(-1)
        assert 0 < outside.mean() < 0.95

    def test_a_pipeline_is_changed_at_every_depth(self):
        bands = Bands(("1", "2"), ("1", "2"), "uint16", fill=(5.0, 6.0))
        jitter = dict(type="torchvision/ColorJitter", brightness=0.2)
        steps = [
            dict(type="LoadImageFromFile", backend_args=dict(backend="local")),
            dict(type="LoadAnnotations"),
            dict(type="RandomChoice", transforms=[[dict(type="RandomFlip")], [jitter]]),
            dict(type="mmdet.Mosaic"),
            dict(type="Pad", size=(8, 8), pad_val=dict(img=(114, 114, 114), masks=0)),
            dict(type="TestTimeAug", transforms=[[dict(type="Resize")], [dict(type="CLAHE")]]),
        ]
        made, removed = with_bands(steps, bands, {})
        assert removed == ["ColorJitter", "Mosaic", "CLAHE"]
        load, _, ignore, choice, pad, views = made
        assert load["bands"] == ("1", "2") and load["backend_args"] == dict(backend="local")
        assert ignore["type"] == "IgnoreMissing"
        assert choice["transforms"] == [[dict(type="RandomFlip")], []]
        assert pad["type"] == "InThrees" and pad["fill"] == (5.0, 6.0)
        assert pad["transform"]["pad_val"] == dict(img=0, masks=0)
        assert views["transforms"] == [[dict(type="Resize")], []]
        assert with_bands(made, bands, {}) == (made, [])


def photometric_transforms() -> list[str]:
    """Names of all transforms of mmdet, mmseg and mmcv that read or make colours."""
    import backbones.openmmlab.detection
    import backbones.openmmlab.segmentation  # noqa: F401  registers its data preprocessor and heads

    words = re.compile(
        r"cvtColor|HSV|hsv|bgr|RGB2|np\.uint8\)|LUT|solarize|posterize|imequalize|iminvert|"
        r"adjust_|auto_contrast|, 3\),|albumentations|imcorrupt|instaboost"
    )
    found = []
    for registry in (mmdet_registry.TRANSFORMS, mmseg_registry.TRANSFORMS, TRANSFORMS):
        for name, kind in registry.module_dict.items():
            own = kind.__module__.startswith(("mmdet.", "mmseg.", "mmcv."))
            methods = [m for c in kind.__mro__[:2] for m in vars(c).values() if callable(m)]
            source = "".join(inspect.getsource(m) for m in methods if inspect.isfunction(m))
            if own and words.search(source):
                found.append(name)
    return sorted(set(found))


# Of those, the ones that only mention colours: loaders, annotations, packing, wrappers.
HARMLESS = {
    "BioMedicalGaussianBlur", "BioMedicalRandomGamma", "GenerateEdge", "LoadAnnotations",
    "LoadBiomedicalData", "LoadDepthAnnotation", "LoadLineAnnotations", "LoadOneDLAnnotations",
    "LoadOneDLSegmentation", "LoadPanopticAnnotations", "LinesToArray", "PackLineDetectionInputs",
    "LoadTrackAnnotations", "LoadImageFromNDArray", "LoadImageFromNpyFile", "InferencerLoader",
    "LoadMultiChannelImageFromFiles", "LoadSingleRSImageFromFile", "LoadMultipleRSImageFromFile",
    "LoadBiomedicalImageFromFile", "LoadBiomedicalAnnotation", "RandomCenterCropPad", "Expand",
    "LineDetDataProcessor", "LoadEmptyAnnotations", "RandomDepthMix", "FilterAnnotations",
}  # fmt: skip


def test_no_photometric_transform_is_forgotten():
    unknown = set(photometric_transforms()) - COLOUR_ONLY - HARMLESS
    assert not unknown
    assert len(set(photometric_transforms()) & COLOUR_ONLY) > 10


@pytest.mark.parametrize("name", sorted(COLOUR_ONLY))
def test_every_photometric_transform_is_refused_by_name(name):
    load = dict(type="LoadImage", bands=("1",), band_names=("1",), band_dtype="uint16")
    for kind in (name, f"mmdet.{name}", f"torchvision/{name}"):
        choice = dict(type="RandomChoice", transforms=[[dict(type=kind)]])
        with pytest.raises(InputError) as error:
            refuse_colour_transforms([load, choice], "key")
        assert error.value.where == name and error.value.code == "unsupported"


@pytest.mark.parametrize("scope", ["mmseg", "mmdet"])
def test_three_bands_of_eight_bits_equal_the_rgb_model(scope, tmp_path):
    """Pixels, normalisation, features and predictions are the same to the last bit."""
    task = dict(mmseg="segmentation", mmdet="detection")[scope]
    layout = dict(mmseg="labels", mmdet="coco")[scope]
    root = draw_bands(tmp_path / "set", 4, "uint8", 3, images=2, layout=layout)
    (root / "bands.json").write_text(json.dumps(dict(names=NAMES[4])))
    config = write_config(tmp_path, task, 'bands = ("red", "green", "blue")')
    own = prepare(Options(config, data=root, work_dir=tmp_path / "own"), "inspect")
    image = next(root.rglob("val/0.tif"))
    pixels = tifffile.imread(image)
    picture = tmp_path / "rgb.png"
    cv2.imwrite(str(picture), pixels[..., :3])  # blue, green, red
    rgb = load_config(config, None)
    set_class_count(rgb.model, 2 if scope == "mmseg" else 1)
    if scope == "mmdet":
        rgb.model.roi_head.mask_head = rgb.model.roi_head.mask_roi_extractor = None
        # Whatever the draw, some boxes are found.
        own.model.test_cfg.rcnn.score_thr = rgb.model.test_cfg.rcnn.score_thr = -1.0
    rgb.test_dataloader.dataset.metainfo = own.test_dataloader.dataset.metainfo
    assert own.model.data_preprocessor.mean == list(rgb.model.data_preprocessor.mean)

    enter_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(own.model)
    for part in ("decode_head", "rpn_head", "roi_head"):
        if hasattr(model, part):
            for parameter in getattr(model, part).parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
    first = Predictor(own, tmp_path / "random.pth", device="cpu")
    second = Predictor(rgb, tmp_path / "random.pth", device="cpu")
    assert first.bands is not None and second.bands is None
    np.testing.assert_array_equal(first.picture(first.read(image)), pixels[..., :3])
    features = []
    for predictor, path in ((first, image), (second, picture)):
        batch = predictor.collate([predictor.packed(path)])
        inputs = predictor.model.data_preprocessor(batch, False)["inputs"]
        features.append([inputs, *predictor.model.backbone(inputs)])
    assert len(features[0]) > 4
    for one, other in zip(*features, strict=True):
        assert torch.equal(one, other) and one.std() > 0
    found = []
    for predictor, path in ((first, image), (second, picture)):
        with predictor.keeping_logits():
            (sample,) = predictor.batch([path])
        found.append(sample)
    if scope == "mmseg":
        one, other = (sample.seg_logits.data for sample in found)
        assert one.std() > 0 and torch.equal(one, other)
    else:
        one, other = (sample.pred_instances for sample in found)
        assert len(one) and torch.equal(one.bboxes, other.bboxes)
        assert torch.equal(one.scores, other.scores)


def test_classifiers_resize_bands_as_rgb(tmp_path):
    from backbones.openmmlab.classification import LoadRGB, ResizeBandsForTest, ResizeForTest

    frame = RNG.integers(0, 256, (70, 90, 3), np.uint8)
    results = LoadRGB().transform(dict(img=frame, img_path="a.png"))
    expected = ResizeForTest(48).transform(results)["inputs"]
    bands = dict(img=np.ascontiguousarray(frame[..., ::-1]), img_path="a.tif")
    assert torch.equal(ResizeBandsForTest(48).transform(bands)["inputs"], expected)


def test_a_set_without_bands_json_is_read_by_its_files_names(tmp_path):
    """Names and nodata are GDAL's, and `bands` chooses and orders: all by the one flag."""
    root = draw_bands(tmp_path / "set", 4, "uint16", 3, images=3, names=NAMES[4])
    images = [tifffile.imread(root / "images" / "train" / f"{i}.tif") for i in range(3)]
    path = write_config(tmp_path, "segmentation", 'bands = ("nir", "red")')
    config = prepare(Options(path, data=root, work_dir=tmp_path / "run"), "inspect")
    values = np.concatenate(images).reshape(-1, 4)[:, [3, 2]].astype(np.float64)
    own = config.model.data_preprocessor
    np.testing.assert_allclose(own.mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(own.std, values.std(0), rtol=1e-9)
    assert config.model.backbone.in_channels == 2
    enter_scope("mmseg")
    config.test_dataloader.dataset.pipeline[1] = dict(type="Resize", scale_factor=1.0)
    loaded = DATASETS.build(config.test_dataloader.dataset)[0]["inputs"]
    stored = tifffile.imread(root / "images" / "val" / "0.tif")
    np.testing.assert_array_equal(loaded, stored[..., [3, 2]].transpose(2, 0, 1))
    # What is resolved needs neither the flag nor a measurement.
    config.dump(tmp_path / "resolved.py")
    again = prepare(Options(tmp_path / "resolved.py"), "inspect")
    assert again.model.data_preprocessor == own
    assert again.train_dataloader == config.train_dataloader


@pytest.mark.parametrize("bands", [3, 5])
def test_an_image_of_other_bands_than_most_is_named(bands, tmp_path):
    root = draw_bands(tmp_path / "set", 4, "uint16", 3, images=3)
    odd = root / "images" / "train" / "1.tif"
    write_tiff(odd, np.ones((64, 64, bands), np.uint16))
    path = write_config(tmp_path, "segmentation")
    with pytest.raises(InputError) as error:
        prepare(Options(path, data=root, work_dir=tmp_path / "run"), "inspect")
    assert error.value.code == "bad-image" and error.value.where == str(odd)
    for number in (str(bands), "4"):
        assert number in str(error.value).removeprefix(str(odd))


STATED = dict(names=NAMES[4], dtype="uint16", mean=[2000.0] * 3 + [2500.0], std=[500.0] * 4)


def test_a_set_of_a_server_is_read_by_the_statistics_that_its_config_states(tmp_path):
    root = draw_bands(tmp_path / "set", 4, "uint16", 3, images=2, layout="coco")
    with serving() as server:
        for path in root.rglob("*.*"):
            server.files[f"/{path.relative_to(root)}"] = path.read_bytes()
        lines = (
            f"bands = {STATED!r}",
            f"server = {server.address!r}",
            "place = dict(data_root='', backend_args=dict(backend='http'))",
            "classes = dict(classes=('square',))",
            "load, size, boxes, pack = _base_.val_dataloader.dataset.pipeline",
            "load = dict(load, backend_args=place['backend_args'])",
            "steps = [load, size, dict(boxes, with_mask=False), pack]",
            "test_dataloader = val_dataloader = dict(",
            "    num_workers=0, persistent_workers=False,",
            "    dataset=dict(place, metainfo=classes, pipeline=steps,",
            "        ann_file=server + '/annotations/instances_val.json',",
            "        data_prefix=dict(img=server + '/val/')))",
        )
        config = prepare(Options(write_config(tmp_path, "detection", *lines)), "inspect")
        enter_scope("mmdet")
        remote = DATASETS.build(config.test_dataloader.dataset)
        found = [remote[i]["inputs"] for i in range(len(remote))]
    own = config.model.data_preprocessor
    assert own.mean == STATED["mean"] and own.std == STATED["std"]
    assert config.model.backbone.in_channels == 4
    (tmp_path / "own").mkdir()
    path = write_config(tmp_path / "own", "detection")
    local = DATASETS.build(prepare(Options(path, data=root), "inspect").test_dataloader.dataset)
    assert len(found) == 2
    for i, image in enumerate(found):
        assert torch.equal(image, local[i]["inputs"]) and image.float().std() > 0


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        (dict(mean=[1.0] * 3), "bad-value", "mean"),
        (dict(std=[1.0, 1.0, 1.0, 0.0]), "bad-value", "std"),
        (dict(dtype="int12"), "bad-value", "dtype"),
        (dict(nodata=-1), "bad-value", "nodata"),
        (dict(chosen=["swir"], mean=[1.0], std=[1.0]), "unknown-name", "swir"),
        (dict(deviation=[1.0] * 4), "bad-config", "bands"),
    ],
)
def test_statistics_that_contradict_end_in_a_line(changes, code, where, tmp_path):
    path = write_config(tmp_path, "segmentation", f"bands = {dict(STATED, **changes)!r}")
    with pytest.raises(InputError) as error:
        prepare(Options(path), "inspect")
    assert (error.value.code, error.value.where) == (code, where)
    assert "\n" not in str(error.value)
