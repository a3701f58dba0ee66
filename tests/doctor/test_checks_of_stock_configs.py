"""The doctor on configs that it does not know: the wheels' own, and datasets in wrappers."""

import importlib.util
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from backbones.errors import InputError
from backbones.openmmlab import mmcv_ops
from backbones.openmmlab.doctor import classes
from backbones.openmmlab.doctor.checks import check_all, check_data
from backbones.openmmlab.doctor.dataset import pipeline_scales
from backbones.openmmlab.doctor.operators import ON_A_GPU, OPERATORS
from backbones.openmmlab.doctor.plan import RunPlan

# Each with what only it has: wrappers, panoptic classes, no training, a list of evaluators, ...
VARIOUS = {
    "mmdet": [
        "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "pascal_voc/retinanet_r50_fpn_1x_voc0712.py",
        "yolox/yolox_tiny_8xb8-300e_coco.py",
        "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
        "reppoints/reppoints-bbox_r50-center_fpn-gn_head-gn-grid_1x_coco.py",
        "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py",
        "sort/sort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py",
        "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py",
    ],
    "mmseg": [
        "upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
        "stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
        "psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py",
        "mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py",
    ],
}
TRUE_MISMATCHES = {"san-vit-b16_voc12aug-640x640", "san-vit-l14_voc12aug-640x640"}


def folder(library: str) -> Path:
    spec = importlib.util.find_spec(library)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / ".mim" / "configs"


def stock(library: str) -> list[Path]:
    paths = sorted(folder(library).glob("*/*.py"))
    return [path for path in paths if path.parent.name not in ("_base_", "common")]


def read(path: Path, tmp_path: Path) -> Config:
    config = Config.fromfile(path, import_custom_modules=False)
    config.work_dir, config.launcher = str(tmp_path), "none"
    return config


def check(path: Path, tmp_path: Path, monkeypatch) -> None:
    """Every check is made, and all that is wrong is that the data and perhaps operators lack."""
    monkeypatch.chdir(tmp_path)
    issues = check_all(read(path, tmp_path))
    failed = [str(issue) for issue in issues if " failed: " in issue.text]
    assert failed == []
    errors = {
        issue.code
        for issue in issues
        # Some large recipes inherit the base_batch_size of small ones.
        if issue.severity == "error" and issue.where != "train_dataloader.batch_size"
    }
    assert errors <= {"not-found", "unsupported", "missing-package", "no-space"}, issues
    config = read(path, tmp_path)
    if config.get("train_dataloader") is not None:
        assert "not-found" in errors
        with pytest.raises(InputError) as caught:
            check_data(config, ("train", "val"))
        assert caught.value.code == "not-found"


@pytest.mark.parametrize(
    "path",
    [folder(library) / name for library, names in VARIOUS.items() for name in names],
    ids=lambda path: path.parent.name,
)
def test_various(path, tmp_path, monkeypatch):
    check(path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for library in ("mmdet", "mmseg") for path in stock(library)[7::40]],
    ids=lambda path: path.stem,
)
def test_many(path, tmp_path, monkeypatch):
    if path.stem in TRUE_MISMATCHES:
        pytest.skip("its training data has a class more than its head")
    check(path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_class_counts_of_all(library, tmp_path):
    mismatched = set()
    for path in stock(library):
        try:
            plan = RunPlan.of(read(path, tmp_path))
        except FileNotFoundError:  # a base that the wheel lacks
            continue
        if [*classes.check_class_names(plan), *classes.check_head_classes(plan)]:
            mismatched.add(path.stem)
    assert mismatched <= TRUE_MISMATCHES


def operators_named(path: Path, tmp_path: Path) -> dict[str, str]:
    """Severity by operator."""
    issues = check_all(read(path, tmp_path))
    named = {}
    for issue in issues:
        if found := re.search(r"mmcv's (\w+)", issue.text):
            assert issue.code == "unsupported" and issue.where.startswith("model.")
            named[found[1]] = issue.severity
    return named


@pytest.mark.skipif(not mmcv_ops.install(), reason="this mmcv has compiled operators")
@pytest.mark.parametrize(
    "name, operator",
    [
        (VARIOUS["mmdet"][4], "deform_conv_forward"),
        (VARIOUS["mmseg"][2], "psamask_forward"),
        (VARIOUS["mmdet"][1], "sigmoid_focal_loss_forward"),
    ],
)
def test_operators_that_lack_are_named(name, operator, tmp_path, monkeypatch):
    """Nobody has told the doctor which detector has a deformable convolution: it looks."""
    path = next(p for p in map(lambda lib: folder(lib) / name, VARIOUS) if p.is_file())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(mmcv_ops, "is_available", lambda op: op != operator)
    severity = "note" if operator == "sigmoid_focal_loss_forward" else "error"
    assert operators_named(path, tmp_path) == {operator: severity}


def test_the_table_names_operators_of_mmcv():
    source = Path(str(importlib.util.find_spec("mmcv.ops").origin)).parent
    text = "\n".join(path.read_text() for path in source.glob("*.py"))
    known = set(re.findall(r"ext_module\.(\w+)", text))
    assert {op for table in (OPERATORS, ON_A_GPU) for ops in table.values() for op in ops} <= known


def coco(**more) -> dict:
    load = dict(type="LoadImageFromFile")
    return dict(type="CocoDataset", ann_file="a.json", data_root="r", pipeline=[load], **more)


def planned(dataset: dict) -> RunPlan:
    return RunPlan.of(Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset),
                                  optim_wrapper=dict())))  # fmt: skip


def test_wrappers_are_taken_off():
    flip = dict(type="RandomFlip", prob=0.5)
    inner = dict(type="ConcatDataset", datasets=[coco(), coco(ann_file_list=())])
    repeated = dict(type="RepeatDataset", times=2, dataset=inner)
    wrapper = dict(type="MultiImageMixDataset", dataset=repeated, pipeline=[flip])
    datasets = planned(wrapper).datasets
    assert [dataset.key for dataset in datasets] == [
        f"train_dataloader.dataset.dataset.dataset.datasets.{number}" for number in (0, 1)
    ]
    steps = [[step["type"] for step in dataset.pipeline] for dataset in datasets]
    assert steps == [["LoadImageFromFile", "RandomFlip"]] * 2
    assert [dataset.kind for dataset in datasets] == ["coco", "coco"]


def test_two_splits_of_the_same_files_are_one_dataset():
    loader = dict(batch_size=1, dataset=coco(test_mode=True))
    config = Config(dict(default_scope="mmdet", val_dataloader=loader, test_dataloader=loader))
    (dataset,) = RunPlan.of(config).datasets
    assert dataset.splits == ("val", "test") and not dataset.trained_on


@pytest.mark.parametrize(
    "step, scales",
    [
        (dict(type="Resize", scale=(640, 960)), [(960, 640)]),
        (dict(type="mmdet.RandomResize", scale=[(9, 6), (9, 8)]), [(9, 6), (9, 8)]),
        (dict(type="RandomChoiceResize", scales=[512, 640], resize_type="ResizeShortestEdge"), []),
        (dict(type="RandomChoice", transforms=[[dict(type="Resize", scale=(8, 9))]]), [(9, 8)]),
        (dict(type="Resize", scale_factor=2.0), []),
    ],
)  # fmt: skip
def test_scales_of_a_pipeline(step, scales):
    assert pipeline_scales(({"type": "LoadImageFromFile"}, ConfigDict(step))) == scales


@pytest.mark.parametrize(
    "config",
    [
        dict(),
        dict(model=None, train_dataloader=None),
        dict(model=dict(type="NoSuchModel"), default_scope="mmdet"),
        dict(default_scope="nowhere", model=dict(type="FasterRCNN")),
        dict(train_dataloader=dict(batch_size=2), optim_wrapper=dict()),
        dict(
            default_scope="mmdet",
            train_dataloader=dict(batch_size=2, dataset=dict(type="NoSuchDataset")),
            val_dataloader=dict(dataset=dict(type="CocoDataset", ann_file=None, metainfo=None)),
            val_evaluator=[dict(type="CocoMetric"), dict(type="DumpDetResults")],
            train_cfg=dict(by_epoch=True),
            optim_wrapper=dict(type="OptimWrapper"),
        ),
    ],
)
def test_configs_with_little_in_them(config, tmp_path):
    issues = check_all(Config({**config, "work_dir": str(tmp_path)}))
    assert [issue for issue in issues if " failed: " in issue.text] == []
    errors = {(issue.code, issue.where) for issue in issues if issue.severity == "error"}
    assert any(where.startswith("model") for _, where in errors)
    if len(config) > 4:
        assert ("unknown-name", "train_dataloader.dataset.type") in errors
