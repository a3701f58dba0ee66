"""mmdet's and mmseg's own configs, as the wheels have them, and configs that inherit from them."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS, TRANSFORMS
from support.forked import run_forked
from support.running import DETECTION, run_here

from backbones.errors import InputError, UnreadableImage
from backbones.openmmlab.config import load_config, notes
from backbones.openmmlab.config.prepare import Options, prepare

LIBRARIES = ("mmdet", "mmseg")


def folder(library: str) -> Path:
    (package,) = find_spec(library).submodule_search_locations
    return Path(package) / ".mim" / "configs"


def stock(library: str) -> list[str]:
    """The names of all configs of a library that are not bases of others."""
    root = folder(library)
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return [f"{library}/{path}" for path in paths if "_base_" not in path.parts]


# What is refused, with the code and key of the error, and why that is true of the config.
NO_BASE = ("bad-config", "", "its _base_ is not in the wheel")
NO_SCOPE = (
    "unknown-name", "tta_model.tta_cfg.nms.type", "a fragment for other configs, without a scope",
)  # fmt: skip
MMPRETRAIN = ("bad-value", "default_scope", "a classifier of mmpretrain")
METRIC = ("unknown-name", "test_evaluator.type", "the class is MOTChallengeMetric")
BY_EPOCH = ("unknown-key", "train_cfg.by_epoch", "mmengine refuses by_epoch beside type too")
REFUSED = {
    "mmdet/bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py": METRIC,
    "mmdet/bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot20train_test-mot20test.py": (
        METRIC
    ),
    "mmdet/bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17test.py": (
        NO_BASE
    ),
    "mmdet/sort/faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17train.py": NO_BASE,
    "mmdet/sort/faster-rcnn_r50_fpn_8xb2-8e_mot20halftrain_test-mot20halfval.py": NO_BASE,
    "mmdet/sort/faster-rcnn_r50_fpn_8xb2-8e_mot20train_test-mot20train.py": NO_BASE,
    "mmdet/cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py": (
        "unknown-key", "model.rpn_head.stages.0.sampling", "a TypeError when the head is built",
    ),
    "mmdet/centernet/centernet_tta.py": NO_SCOPE,
    "mmdet/retinanet/retinanet_tta.py": NO_SCOPE,
    "mmdet/rtmdet/rtmdet_tta.py": NO_SCOPE,
    "mmdet/yolox/yolox_tta.py": NO_SCOPE,
    "mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712-cocofmt.py": (
        "unknown-key", "val_evaluator.eval_mode", "a TypeError when CocoMetric is built",
    ),
    **{
        f"mmdet/rtmdet/classification/cspnext-{size}_8xb256-rsb-a1-600e_in1k.py": MMPRETRAIN
        for size in ("tiny", "s", "m", "l", "x")
    },
    **{
        f"mmdet/solov2/solov2-light_{backbone}_fpn_ms-3x_coco.py": BY_EPOCH
        for backbone in ("r18", "r34", "r50-dcn", "r50")
    },
    "mmdet/v3det/fcos_swinb_fpn_8x4_sample1e-3_mstrain_v3det_2x.py": (
        "unknown-key", "model.neck.force_grad_on_level", "a TypeError when FPN is built",
    ),
    "mmseg/bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py": (
        "unknown-key", "models", "misspelled there: its sampler is never used",
    ),
}  # fmt: skip


def outcome(name: str) -> tuple[str, str] | None:
    """Code and key of what a stock config is refused for, or None."""
    library, _, below = name.partition("/")
    try:
        notes(load_config(folder(library) / below))
    except InputError as error:
        where = "" if error.code == "bad-config" else str(error.where)
        return str(error.code), where
    return None


def assert_load(names: list[str]) -> None:
    found = {name: outcome(name) for name in names}
    expected = {name: REFUSED[name][:2] if name in REFUSED else None for name in names}
    assert {n: f for n, f in found.items() if f != expected[n]} == {}


def test_stock_configs_load():
    names = [name for library in LIBRARIES for name in stock(library)]
    assert len(names) > 1400 and set(REFUSED) < set(names)
    assert_load(names[::75])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("library", LIBRARIES)
def test_all_stock_configs_load(library, part):
    """Or are refused for a reason that is true of them."""
    assert_load(stock(library)[part::4])


# A config of a user's, in a folder of their own: a stock config with ConvNeXt in it. The rest makes
# it small, and is not needed for it to run.
BACKBONE = """
_base_ = {base!r}
model = dict(backbone=dict(_delete_=True, type="ConvNeXt", arch="atto", out_indices={indices}))
{widths}
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""
SMALL = {
    "mmdet": """
train_cfg = dict(max_epochs=1)
resize = dict(type="Resize", scale=(96, 96), keep_ratio=True)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True), resize]
train_dataloader["dataset"] = dict(indices=4, pipeline=[*load, dict(type="PackDetInputs")])
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
packed = dict(type="PackDetInputs", meta_keys=keys)
val_dataloader["dataset"] = dict(pipeline=[*load, packed])
test_dataloader["dataset"] = dict(pipeline=[*load, packed])
""",
    "mmseg": """
model["pretrained"] = None  # of the base: weights of its ResNet
model["data_preprocessor"] = dict(size=(64, 64))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
crop = dict(type="RandomCrop", crop_size=(64, 64))
train_dataloader["dataset"] = dict(pipeline=[*load, crop, dict(type="PackSegInputs")])
small = dict(type="Resize", scale=(64, 64), keep_ratio=True)
pipeline = [load[0], small, load[1], dict(type="PackSegInputs")]
val_dataloader["dataset"] = dict(pipeline=pipeline)
test_dataloader["dataset"] = dict(pipeline=pipeline)
""",
}
INHERITED = {
    "faster_rcnn": (
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        (0, 1, 2, 3),
        'model["neck"] = dict(in_channels=[40, 80, 160, 320])',
    ),
    "retinanet": (
        "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
        (1, 2, 3),
        'model["neck"] = dict(in_channels=[80, 160, 320], start_level=0)\n'
        'model["test_cfg"] = dict(score_thr=0.0)  # mmdet scores nothing where nothing is found',
    ),
    "fpn": (
        "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
        (0, 1, 2, 3),
        'model["neck"] = dict(in_channels=[40, 80, 160, 320])',
    ),
    "deeplabv3plus": (
        "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
        (0, 1, 2, 3),
        'model["decode_head"] = dict(in_channels=320, c1_in_channels=40)\n'
        'model["auxiliary_head"] = dict(in_channels=160)',
    ),
}


def inherited(name: str, where: Path) -> Path:
    base, indices, widths = INHERITED[name]
    text = BACKBONE.format(base=base, indices=indices, widths=widths)
    path = where / f"{name}.py"
    path.write_text(text + SMALL[base.partition("::")[0]])
    return path


@pytest.mark.parametrize("name", INHERITED)
def test_checks_take_an_inherited_config(name, shapes, tmp_path):
    """It is read as it stands: no custom_imports, helper variables at its top."""
    path = inherited(name, tmp_path)
    config = load_config(path)
    assert config.model.backbone.type == "ConvNeXt" and "custom_imports" not in config
    assert notes(config) == []
    counted = run_here("complexity.py", path, "--json", "--size", 64, 64)
    assert json.loads(counted.out)["params"]["backbone"] > 3_000_000
    path.write_text(path.read_text().replace("arch=", "archh="))
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert (caught.value.code, caught.value.where) == ("unknown-key", "model.backbone.archh")


@pytest.mark.slow
@pytest.mark.parametrize("name", INHERITED)
def test_tools_run_an_inherited_config(name, shapes, tmp_path):
    """Doctor, two iterations of training, evaluation and prediction, from another folder."""
    path = inherited(name, tmp_path)
    data = ("--data", shapes)
    checked = run_here("doctor.py", path, *data, "--work-dir", tmp_path / "run", "--json")
    issues = json.loads(checked.out)
    assert [issue for issue in issues if issue["severity"] == "error"] == [], issues
    batch = ("--work-dir", tmp_path / "run", "--global-batch", 2)
    trained = run_forked("train.py", path, *data, *batch, cwd=tmp_path)
    assert trained.status == 0, trained.err[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["changes"], report["config"]
    assert (tmp_path / "run" / "report.html").is_file()  # though the config does not name the hook
    (checkpoint,) = (tmp_path / "run").glob("*_*.pth")
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["meta"]["iter"] == 2
    tested = run_forked(
        "test.py", path, checkpoint, *data, "--work-dir", tmp_path / "run", cwd=tmp_path
    )
    assert tested.status == 0, tested.err[-3000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"coco/bbox_mAP", "mIoU"} & set(metrics)
    is_detector = INHERITED[name][0].startswith("mmdet")
    images = shapes / ("val2017" if is_detector else "images/validation")
    resolved = tmp_path / "run" / path.name  # it has the classes of the data
    predicted = run_forked("predict.py", resolved, checkpoint, images, "--out", "out", cwd=tmp_path)
    assert predicted.status == 0, predicted.err[-3000:]
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 4


def test_our_hooks_are_added_once(tmp_path):
    """To a config of another origin; ours keep what they say."""
    path = inherited("faster_rcnn", tmp_path)
    config = prepare(Options(path), "evaluate")
    assert [config.default_hooks[name].type for name in ("progress", "report")] == [
        "ProgressHook",
        "ReportHook",
    ]
    path.write_text(path.read_text() + "\ndefault_hooks = dict(report=None)\n")
    assert prepare(Options(path), "evaluate").default_hooks.report is None
    classifier = DETECTION.parents[1] / "classification" / "roadmap_demo.py"
    assert "report" not in prepare(Options(classifier), "evaluate").default_hooks


@pytest.mark.parametrize("name", ["faster_rcnn", "fpn"])
def test_stock_configs_read_images_with_our_decoder(name, tmp_path):
    """A file that cannot be read is named, as in our own configs."""
    config = prepare(Options(inherited(name, tmp_path)), "train")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for split in ("train", "val", "test"):
        load, *_ = config[f"{split}_dataloader"].dataset.pipeline
        with pytest.raises(UnreadableImage) as caught:
            TRANSFORMS.build(load)(dict(img_path=str(empty)))
        assert caught.value.where == str(empty)
    assert "backbones.openmmlab.data.loading" in config.custom_imports["imports"]


def test_a_saved_config_imports_all_that_it_names(tmp_path):
    """The library's own module, a string there, and the hooks of ours."""
    path = folder("mmseg") / "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"
    assert load_config(path).custom_imports["imports"] == "mmdet.models"
    config = prepare(Options(path, skip_bad_images=True, global_batch=16), "train")
    config.dump(tmp_path / "saved.py")
    saved = load_config(tmp_path / "saved.py")
    imports = saved.custom_imports["imports"]
    assert imports[0] == "mmdet.models" and "backbones.openmmlab.report" in imports
    for hook in saved.custom_hooks:
        assert HOOKS.get(hook.type).__module__ in imports


def test_a_base_of_either_library_is_found_by_its_prefix(tmp_path):
    for name, (base, *_) in INHERITED.items():
        library, _, below = base.partition("::")
        theirs = load_config(folder(library) / below)
        ours = load_config(inherited(name, tmp_path))
        assert ours.default_scope == theirs.default_scope
        assert ours.model.type == theirs.model.type
