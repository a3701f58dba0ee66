"""A mistake ends in one line that says what to do, a non-zero status, nothing half-written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.forked import run_forked
from support.running import DETECTION, REPOSITORY, SEGMENTATION, Outcome, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config import load_config

ONE_EPOCH = (
    "train_cfg.max_epochs=1",
    "train_cfg.val_interval=1",
    "train_dataloader.num_workers=1",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
)
FEW_ITERATIONS = (
    "train_cfg.max_iters=4",
    "train_cfg.val_interval=4",
    "train_dataloader.num_workers=1",
    "train_dataloader.batch_size=2",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
)


@pytest.fixture
def faulty(shapes, tmp_path) -> Path:
    """A copy of it to plant a fault in."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def assert_named(outcome: Outcome, *names: object) -> None:
    """Check that a tool ended in one line with a code, which names each of these literally."""
    assert outcome.code is not None, outcome.err
    assert_error(outcome, outcome.code, *names)


class TestConfig:
    def test_missing_config_names_the_nearest(self):
        outcome = run_here("train.py", DETECTION.parent / "cascade_convnext_tt.py")
        assert_error(outcome, "not-found", "cascade_convnext_tt.py", "cascade_convnext_t.py")

    def test_broken_config(self, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text("model = dict(")
        assert_error(run_here("train.py", path), "bad-config", "mine.py", "SyntaxError")
        path.write_text("_base_ = './missing.py'")
        assert_error(run_here("train.py", path), "bad-config", "mine.py", "missing.py")
        path.write_text("custom_imports = dict(imports=['no_such_package'])")
        assert_error(run_here("train.py", path), "bad-config", "mine.py", "no_such_package")

    @pytest.mark.parametrize(
        "option, key, nearest",
        [
            ("optim_wrapper.optimiser.lr=1", "optim_wrapper.optimiser", "optimizer"),
            ("train_cfg.max_epoch=3", "train_cfg.max_epoch", "max_epochs"),
            ("model.roi_head.bbox_head.3.num_classes=3", "model.roi_head.bbox_head.3", ""),
            ("model.backbone.drop_path=0.1", "model.backbone.drop_path", "drop_path_rate"),
            ("nekc.out_channels=1", "nekc", ""),
            ("data_root=elsewhere", "data_root", ""),
        ],
    )
    def test_cfg_option_that_does_not_exist(self, option, key, nearest):
        outcome = run_here("train.py", DETECTION, "--cfg-options", option)
        assert_error(outcome, "unknown-key", "--cfg-options", key, nearest)

    @pytest.mark.parametrize(
        "option, key",
        [
            ("optim_wrapper=3", "optim_wrapper"),
            ("custom_hooks=3", "custom_hooks"),
            ("train_cfg.max_epochs=few", "train_cfg.max_epochs"),
            ("train_cfg.max_epochs", "train_cfg.max_epochs"),
        ],
    )
    def test_cfg_option_of_another_kind(self, option, key):
        outcome = run_here("train.py", DETECTION, "--cfg-options", option)
        assert_error(outcome, "bad-value", "--cfg-options", key)

    def test_misspelled_key_of_a_child_config(self, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text(f"_base_ = {str(DETECTION)!r}\nmodel = dict(nekc=dict(out_channels=3))")
        assert_error(run_here("train.py", path), "unknown-key", "model.nekc", "neck")

    def test_unregistered_class(self):
        outcome = run_here("train.py", DETECTION, "--cfg-options", "model.backbone.type=ConvNext")
        assert_error(outcome, "unknown-name", "model.backbone.type", "'ConvNext'", "ConvNeXt")

    def test_optional_dicts_have_their_keys_checked(self, tmp_path):
        """`loss_scale` may be a dict of GradScaler's arguments."""
        path = tmp_path / "mine.py"
        base = f"_base_ = {str(DETECTION)!r}\n"
        path.write_text(f"{base}optim_wrapper = dict(loss_scale=dict(enabled=False))")
        assert load_config(path).optim_wrapper.loss_scale == dict(enabled=False)
        path.write_text(f"{base}optim_wrapper = dict(loss_scale=dict(enabledd=False))")
        with pytest.raises(InputError) as caught:
            load_config(path)
        assert caught.value.code == "unknown-key"
        assert caught.value.where == "optim_wrapper.loss_scale.enabledd"


class TestData:
    def test_missing_root(self, tmp_path):
        outcome = run_here("train.py", DETECTION, "--data", tmp_path / "nowhere")
        assert_named(outcome, "nowhere", "prepare_data.py")

    def test_missing_annotation_file(self, faulty):
        (faulty / "annotations" / "instances_train2017.json").unlink()
        outcome = run_here("train.py", DETECTION, "--data", faulty)
        assert_named(outcome, "instances_train2017.json")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
    def test_annotation_file_cut_off(self, faulty, share):
        path = faulty / "annotations" / "instances_train2017.json"
        text = path.read_bytes()
        path.write_bytes(text[: int(share * len(text))])
        outcome = run_here("train.py", DETECTION, "--data", faulty)
        assert_named(outcome, "instances_train2017.json")

    def test_missing_image_folder(self, faulty):
        shutil.rmtree(faulty / "val2017")
        assert_named(run_here("train.py", DETECTION, "--data", faulty), "val2017")

    def test_other_categories(self, faulty):
        path = faulty / "annotations" / "instances_val2017.json"
        data = json.loads(path.read_text())
        data["categories"][0]["name"] = "hexagon"
        path.write_text(json.dumps(data))
        outcome = run_here("train.py", DETECTION, "--data", faulty)
        assert_named(outcome, "instances_val2017.json", "hexagon", "num_classes")

    def test_class_count_of_one_head(self, shapes):
        option = "model.roi_head.bbox_head.1.num_classes=5"
        outcome = run_here("train.py", DETECTION, "--data", shapes, "--cfg-options", option)
        assert_named(outcome, "model.roi_head.bbox_head.1.num_classes", "5", "4")

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param("missing", marks=pytest.mark.slow),
            pytest.param("empty", marks=pytest.mark.slow),
            "text",
        ],
    )
    def test_image(self, faulty, tmp_path, fault):
        path = faulty / "train2017" / "000000000003.jpg"
        path.unlink()
        if fault != "missing":
            path.write_text("" if fault == "empty" else "not a picture")
        outcome = run_forked(
            "train.py", DETECTION, "--data", faulty, "--cfg-options", *ONE_EPOCH, cwd=tmp_path
        )
        assert_named(outcome, "000000000003.jpg")

    @pytest.mark.parametrize(
        "split", ["training", pytest.param("validation", marks=pytest.mark.slow)]
    )
    def test_label_beyond_the_classes(self, faulty, tmp_path, split):
        import numpy as np
        from PIL import Image

        for path in (faulty / "annotations" / split).iterdir():
            labels = np.array(Image.open(path))
            labels[10:80, 10:80] = 12
            Image.fromarray(labels).save(path)
        options = ("--data", faulty, "--cfg-options", *FEW_ITERATIONS)
        outcome = run_forked("train.py", SEGMENTATION, *options, cwd=tmp_path)
        assert_named(outcome, "ADE_", ".png", "11", "8")


class TestCheckpoint:
    def test_missing(self, shapes, tmp_path):
        options = ("--data", shapes, "--work-dir", tmp_path / "run")
        assert_named(run_here("test.py", DETECTION, "none.pth", *options), "none.pth")
        outcome = run_here("train.py", DETECTION, "--init-from", tmp_path, *options)
        assert_named(outcome, tmp_path)
        assert not (tmp_path / "run").exists()  # before anything is built

    def test_of_another_architecture(self, shapes, tmp_path, monkeypatch):
        from mmengine.registry import MODELS

        from backbones.openmmlab.registration import enter_scope

        config = load_config(DETECTION, {"model.backbone.arch": "femto"})
        enter_scope("mmdet")
        torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), tmp_path / "femto.pth")
        monkeypatch.chdir(tmp_path)
        for outcome in (
            run_forked("test.py", DETECTION, "femto.pth", "--data", shapes, cwd=tmp_path),
            run_here("predict.py", DETECTION, "femto.pth", shapes / "val2017"),
        ):
            assert_named(outcome, "femto.pth", "CascadeRCNN", "(48, 3, 4, 4)", "(40")
        assert not (tmp_path / "predictions").exists()

    def test_pretrained_file_of_another_architecture(self, shapes, tmp_path):
        from backbones import ConvNeXtClassifier

        torch.save(dict(model=ConvNeXtClassifier("femto").state_dict()), tmp_path / "femto.pth")
        path = tmp_path / "mine.py"
        init = f"dict(type='Pretrained', checkpoint={str(tmp_path / 'femto.pth')!r})"
        path.write_text(
            f"_base_ = {str(DETECTION)!r}\nmodel = dict(backbone=dict(init_cfg={init}))"
        )
        outcome = run_forked("train.py", path, "--data", shapes, cwd=tmp_path)
        assert_named(outcome, "femto.pth", "(48, ", "(40")

    def test_tta_of_a_detector(self, shapes):
        outcome = run_here("test.py", DETECTION, __file__, "--data", shapes, "--tta", "paper")
        assert_error(outcome, "unknown-name", "--tta paper", "flip", "multi_scale")


class TestPredict:
    def test_missing_image(self, tmp_path):
        outcome = run_here("predict.py", DETECTION, "x.pth", tmp_path / "none.jpg")
        assert_named(outcome, "none.jpg")

    def test_empty_folder(self, tmp_path):
        assert_named(run_here("predict.py", DETECTION, "x.pth", tmp_path), tmp_path.name)


def test_every_tool_is_executable_and_explains_itself():
    files = sorted((REPOSITORY / "tools").glob("*.py"))
    for tool in files:
        assert os.access(tool, os.X_OK), tool
        outcome = run_here(tool.name, "--help")
        assert outcome.status == 0 and "usage" in outcome.out, tool
