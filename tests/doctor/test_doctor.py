"""Every planted fault is named by file or key, with what to do; clean data has none."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.running import DETECTION, REPOSITORY, SEGMENTATION, assert_error, run_here

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.files import spread
from backbones.openmmlab.data.image_files import read_header
from backbones.openmmlab.data.issues import Issue, by_severity, of_weight
from backbones.openmmlab.data.own_data import change_place
from backbones.openmmlab.doctor import stack
from backbones.openmmlab.doctor.checks import check_all, check_data, check_quickly
from backbones.openmmlab.doctor.dataset import pipeline_scales
from backbones.openmmlab.doctor.plan import RunPlan

CONFIGS = REPOSITORY / "configs"
CLASSES = CONFIGS / "classification" / "convnext_atto_demo.py"
ROTATED = 6  # EXIF: turn by 90 degrees


@pytest.fixture
def faulty(shapes, tmp_path) -> Path:
    """A copy of the demo set to plant a fault in."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def checked(path: Path, data: Path, memory: bool = False, **overrides) -> list[Issue]:
    """Return the errors and warnings; notes are on this machine."""
    config = load_config(path, {key.replace("__", "."): v for key, v in overrides.items()})
    change_place(config, data)
    config.work_dir, config.launcher = "work_dirs", "none"
    return [issue for issue in check_all(config, memory=memory) if issue.severity != "note"]


def assert_issue(issues: list[Issue], severity: str, code: str, *names: object) -> None:
    """One issue of this severity and code names all of these; it is one line."""
    hits = [
        issue
        for issue in issues
        if (issue.severity, issue.code) == (severity, code)
        and all(str(name) in str(issue) for name in names)
    ]
    assert len(hits) == 1, "\n".join(map(repr, issues))
    assert "\n" not in str(hits[0])


@pytest.mark.parametrize("path", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_clean_data_has_no_finding_of_weight(path, shapes):
    assert checked(path, shapes, memory=True) == []


class TestAnnotations:
    NAME = "annotations/instances_train2017.json"

    def plant(self, root: Path, change) -> list[Issue]:
        path = root / self.NAME
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return checked(DETECTION, root)

    @pytest.mark.parametrize(
        "key, value, severity, names",
        [
            ("bbox", [200, 10, 20, 20], "warning", ["outside its image"]),
            ("bbox", [80, 80, 60, 12], "warning", ["beyond its image"]),
            ("bbox", [10, 10, 0, 20], "warning", ["no area"]),
            ("bbox", [10, 10, 0.4, 20], "warning", ["thinner than a pixel"]),
            ("area", 0, "warning", ["no area"]),
            ("bbox", [10, 10, 20], "error", ["not four finite numbers"]),
            ("bbox", [10, 10, float("nan"), 20], "error", ["not four finite numbers"]),
            ("category_id", 77, "error", ["category 77"]),
            ("image_id", 99, "error", ["not in the file"]),
            ("segmentation", None, "error", ["no segmentation"]),
            ("segmentation", [[1, 2, 3, 4]], "error", ["annotation id 1"]),
            ("id", 2, "error", ["annotation id 2"]),
        ],
    )
    def test_of_one_annotation(self, faulty, key, value, severity, names):
        def change(content):
            content["annotations"][0][key] = value

        names = ("instances_train2017.json", *names)
        assert_issue(self.plant(faulty, change), severity, "bad-annotations", *names)

    def test_repeated_image_id(self, faulty):
        def change(content):
            content["images"].append({**content["images"][0], "file_name": "000000000002.jpg"})

        issues = self.plant(faulty, change)
        assert_issue(issues, "error", "bad-annotations", "image id 1:")
        assert_issue(issues, "warning", "bad-annotations", "000000000002.jpg")

    def test_sizes_are_not_the_files(self, faulty):
        def change(content):
            for image in content["images"][:3]:
                image["width"] *= 2

        names = ("000000000001.jpg", "192x96", "96x96", "3 of 8")
        assert_issue(self.plant(faulty, change), "error", "bad-annotations", *names)

    def test_categories_in_another_order(self, faulty):
        def change(content):
            content["categories"].reverse()

        names = ("label 0", "star", "circle")
        assert_issue(self.plant(faulty, change), "error", "class-mismatch", *names)

    def test_categories_that_are_no_class(self, faulty):
        """A detector of a few of a file's categories is trained as mmdet trains it."""

        def change(content):
            content["categories"].append(dict(id=9, name="hexagon"))
            content["annotations"][0]["category_id"] = 9

        issues = self.plant(faulty, change)
        names = ("instances_train2017.json", "5 categories", "4 classes", "1 objects", "hexagon")
        assert_issue(issues, "warning", "class-mismatch", *names)
        assert not [issue for issue in issues if issue.severity == "error"]

    def test_class_without_annotations(self, faulty):
        def change(content):
            stars = [c["id"] for c in content["categories"] if c["name"] == "star"]
            for annotation in content["annotations"]:
                if annotation["category_id"] in stars:
                    annotation["category_id"] = 1

        issues = self.plant(faulty, change)
        assert_issue(issues, "warning", "bad-annotations", "no annotation of star")

    def test_not_coco(self, faulty):
        def change(content):
            del content["images"][0]["width"]

        issues = self.plant(faulty, change)
        assert_issue(issues, "error", "bad-annotations", "images[0]", "'width'")

    def test_missing_image(self, faulty):
        (faulty / "train2017" / "000000000004.jpg").unlink()
        assert_issue(checked(DETECTION, faulty), "error", "bad-image", "000000000004.jpg")


class TestImages:
    def change(self, root: Path, image: Image.Image, **options) -> list[Issue]:
        """Every second image replaced: JPEG's name with a PNG's content is read by content."""
        for path in sorted((root / "train2017").iterdir())[::2]:
            image.save(path, **options)
        return checked(DETECTION, root)

    @pytest.mark.parametrize("content", [b"", b"no picture", None])
    def test_broken(self, faulty, content):
        path = faulty / "train2017" / "000000000003.jpg"
        path.write_bytes(path.read_bytes()[:900] if content is None else content)
        assert_issue(checked(DETECTION, faulty), "error", "bad-image", "000000000003.jpg")

    @pytest.mark.parametrize(
        "mode, names",
        [
            ("RGBA", ["transparency", "4 of 8"]),
            ("I;16", ["8 bits"]),
            ("CMYK", ["CMYK"]),
        ],
    )
    def test_channels_and_depth(self, faulty, mode, names):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        issues = self.change(faulty, Image.new(mode, (96, 96)), format=kind)
        assert_issue(issues, "warning", "bad-image", "000000000001.jpg", *names)

    def test_grey_is_a_note(self, faulty):
        Image.new("L", (96, 96)).save(faulty / "train2017" / "000000000001.jpg")
        config = load_config(DETECTION)
        change_place(config, faulty)
        assert_issue(check_all(config, memory=False), "note", "bad-image", "grey", "1 of 8")
        assert not of_weight(check_all(config, memory=False))

    def test_exif_rotation(self, faulty):
        exif = Image.Exif()
        exif[0x0112] = ROTATED
        path = faulty / "train2017" / "000000000002.jpg"
        Image.new("RGB", (96, 64)).save(path, exif=exif)
        header = read_header(path)
        assert header.size == (96, 64) and header.upright == (64, 96)
        annotations = faulty / TestAnnotations.NAME
        content = json.loads(annotations.read_text())
        content["images"][1].update(width=96, height=64)
        for annotation in content["annotations"]:
            if annotation["image_id"] == 2:
                annotation["bbox"] = [1, 1, 9, 9]
                annotation["segmentation"] = [[1, 1, 10, 1, 10, 10]]
        annotations.write_text(json.dumps(content))
        names = ("000000000002.jpg", "EXIF", "64x96", "96x64")
        assert_issue(checked(DETECTION, faulty), "error", "bad-annotations", *names)
        # Annotated as it is seen, it is right: OpenCV turns it.
        content["images"][1].update(width=64, height=96)
        annotations.write_text(json.dumps(content))
        assert checked(DETECTION, faulty) == []

    def test_far_from_the_recipes_scale(self, shapes):
        scale = {"train_dataloader__dataset__pipeline__2__scale": (1280, 1280)}
        issues = checked(SEGMENTATION, shapes, **scale)
        key = "train_dataloader.dataset.pipeline"
        assert_issue(issues, "warning", "bad-image", key, "enlarges", "13.3")
        scale = {"train_dataloader__dataset__pipeline__2__scale": (20, 20)}
        issues = checked(SEGMENTATION, shapes, **scale)
        assert_issue(issues, "warning", "bad-image", key, "reduces", "4.8")


class TestLabelMaps:
    def plant(self, root: Path, change, split: str = "training", **overrides) -> list[Issue]:
        for path in sorted((root / "annotations" / split).iterdir()):
            Image.fromarray(change(np.array(Image.open(path)))).save(path)
        return checked(SEGMENTATION, root, **overrides)

    def test_label_beyond_the_classes(self, faulty):
        def change(labels):
            labels[10:20, 10:20] = 12
            return labels

        names = ("ADE_train_00000001.png", "label 12", "8 classes", "1 to 8")
        assert_issue(self.plant(faulty, change), "error", "bad-labels", *names)

    def test_foreground_written_as_255(self, faulty):
        def change(labels):
            return np.where(labels <= 4, 255, 0).astype(np.uint8)

        names = ("ADE_train_00000001.png", "0 and 255")
        assert_issue(self.plant(faulty, change), "error", "bad-labels", *names)

    def test_last_class_written_as_255(self, faulty):
        def change(labels):
            return np.where(labels == 8, 255, labels).astype(np.uint8)

        names = ("train_dataloader.dataset", "last class checks", "255")
        assert_issue(self.plant(faulty, change), "warning", "bad-labels", *names)

    def test_reduce_zero_label_that_does_not_suit(self, faulty):
        # Labels 0 to 7 for 8 classes are read as if 0 were the unlabelled.
        issues = self.plant(faulty, lambda labels: labels - 1)
        names = ("train_dataloader.dataset.reduce_zero_label", "True", "0 to 7", "circle")
        assert_issue(issues, "error", "bad-labels", *names)

    def test_no_reduce_zero_label_where_it_is_needed(self, shapes):
        off = {
            f"{split}_dataloader__dataset__{key}": False
            for split in ("train", "val", "test")
            for key in (
                "reduce_zero_label",
                f"pipeline__{1 + (split != 'train')}__reduce_zero_label",
            )
        }
        issues = checked(SEGMENTATION, shapes, **off)
        for split in ("ADE_train", "ADE_val"):
            names = (split, "label 8", "8 classes", "reduce_zero_label=True")
            assert_issue(issues, "error", "bad-labels", *names)

    def test_two_that_contradict(self, shapes):
        key = "train_dataloader__dataset__pipeline__1__reduce_zero_label"
        issues = checked(SEGMENTATION, shapes, **{key: False})
        names = ("train_dataloader.dataset.pipeline.1.reduce_zero_label", "False", "True")
        assert_issue(issues, "error", "bad-config", *names)

    def test_of_another_size(self, faulty):
        issues = self.plant(faulty, lambda labels: labels[:, :48])
        assert_issue(issues, "error", "bad-labels", "48x96", "96x96", "8 of 8")

    def test_colours(self, faulty):
        issues = self.plant(faulty, lambda labels: np.stack([labels] * 3, axis=-1))
        assert_issue(issues, "error", "bad-labels", "ADE_train_00000001.png", "colours")

    def test_sixteen_bits(self, faulty):
        issues = self.plant(faulty, lambda labels: labels.astype(np.uint16) + 300)
        assert_issue(issues, "error", "bad-labels", "255", "8 bits")

    def test_missing_and_broken(self, faulty):
        (faulty / "annotations" / "training" / "ADE_train_00000002.png").unlink()
        (faulty / "annotations" / "training" / "ADE_train_00000005.png").write_bytes(b"")
        issues = checked(SEGMENTATION, faulty)
        assert_issue(issues, "error", "bad-labels", "ADE_train_00000002.png", "1 of 8")
        assert_issue(issues, "error", "bad-labels", "ADE_train_00000005.png")

    def test_no_image_at_all(self, faulty):
        for path in (faulty / "images" / "training").iterdir():
            path.rename(path.with_suffix(".jpeg"))
        names = ("train_dataloader.dataset", "*.jpg")
        assert_issue(checked(SEGMENTATION, faulty), "error", "no-data", *names)


class TestClassFolders:
    CLASS = "classes/{}/star"

    @pytest.fixture
    def folder(self, faulty) -> Path:
        return faulty / self.CLASS.format("train")

    def test_clean_folders_have_no_finding(self, shapes):
        assert checked(CLASSES, shapes) == []

    def test_class_count_of_the_head(self, shapes):
        issues = checked(CLASSES, shapes, model__num_classes=7)
        assert_issue(issues, "error", "class-mismatch", "model.num_classes", "7 classes", "has 4")

    @pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "cut off"])
    def test_unreadable_image(self, faulty, folder, content):
        paths = sorted(folder.iterdir())[1:3]
        for path in paths:
            path.write_bytes(path.read_bytes()[:700] if content is None else content)
        names = (f"star/{paths[0].name}", "1 more", paths[1].name)
        assert_issue(checked(CLASSES, faulty), "error", "bad-image", *names)

    def test_empty_class(self, faulty, folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (issue,) = checked(CLASSES, faulty)
        assert issue.severity == "error" and "train/star" in str(issue)

    def test_class_that_the_config_lacks(self, faulty):
        shutil.copytree(faulty / self.CLASS.format("val"), faulty / "classes" / "val" / "hexagon")
        (issue,) = checked(CLASSES, faulty)
        assert issue.severity == "error"
        assert all(name in str(issue) for name in ("classes/val", "hexagon", "5", "4"))

    @pytest.mark.parametrize("count", [4, 5], ids=["renamed", "more"])
    def test_class_that_training_lacks(self, faulty, count):
        """With `classes=None` each split's labels are the positions of its own folders."""
        found = {f"{split}_dataloader__dataset__classes": None for split in ("train", "val")}
        found["test_dataloader__dataset__classes"] = None
        assert checked(CLASSES, faulty, **found) == []
        star = faulty / self.CLASS.format("val")
        hexagon = star.with_name("hexagon")
        star.rename(hexagon) if count == 4 else shutil.copytree(star, hexagon)
        issues = checked(CLASSES, faulty, **found)
        names = ["val_dataloader.dataset", "has hexagon", "train_dataloader.dataset"]
        names += ["lacks star"][: count == 4]
        assert_issue(issues, "error", "class-mismatch", *names)
        config = load_config(CLASSES, {k.replace("__", "."): v for k, v in found.items()})
        change_place(config, faulty)
        with pytest.raises(InputError) as caught:
            check_data(config, ("train", "val"))
        assert caught.value.code == "class-mismatch"
        assert caught.value.where == "val_dataloader.dataset"

    def test_files_that_are_passed_over(self, faulty, folder):
        Image.new("RGB", (64, 64)).save(folder / "a.gif")
        (folder / "b.heic").write_bytes(b"ftypheic")
        Image.new("RGB", (64, 64)).save(folder.parent / "c.png")
        (folder / "d.txt").write_text("made on a Tuesday")
        (folder / ".DS_Store").write_text("")
        issues = checked(CLASSES, faulty)
        assert len(issues) == 2
        assert_issue(issues, "warning", "bad-image", "star/a.gif", "1 more", "b.heic")
        assert_issue(issues, "warning", "bad-image", "train/c.png", "outside")
        config = load_config(CLASSES)
        change_place(config, faulty)
        assert_issue(check_all(config, memory=False), "note", "bad-image", "star/d.txt")


class TestConfig:
    def test_class_counts_of_every_head(self, shapes):
        overrides = {
            "model__roi_head__bbox_head__1__num_classes": 5,
            "model__roi_head__mask_head__num_classes": 80,
        }
        issues = checked(DETECTION, shapes, **overrides)
        for key, count in (("bbox_head.1", 5), ("mask_head", 80)):
            names = (f"model.roi_head.{key}.num_classes", f"{count} classes", "has 4")
            assert_issue(issues, "error", "class-mismatch", *names)
        issues = checked(SEGMENTATION, shapes, model__auxiliary_head__num_classes=19)
        key = "model.auxiliary_head.num_classes"
        assert_issue(issues, "error", "class-mismatch", key, "19 classes", "has 8")

    def test_windows(self, shapes):
        test = {"model__test_cfg__stride": (200, 200)}
        names = ("model.test_cfg.stride", "(200, 200)", "(128, 128)")
        assert_issue(checked(SEGMENTATION, shapes, **test), "error", "bad-config", *names)
        test = {"model__test_cfg__crop_size": (256, 256)}
        names = ("model.test_cfg.crop_size", "(256, 256)", "(128, 128)")
        assert_issue(checked(SEGMENTATION, shapes, **test), "warning", "bad-config", *names)

    def test_batch_norm_of_one_value(self, shapes):
        issues = checked(SEGMENTATION, shapes, train_dataloader__batch_size=1)
        assert_issue(issues, "error", "bad-config", "model.decode_head.norm_cfg", "1x1")

    def test_batch_against_the_recipe(self):
        def quickly(**options):
            config = load_config(CONFIGS / "segmentation" / "upernet_convnext_t.py", options)
            config.launcher = "none"
            return check_quickly(config)

        key = "train_dataloader.batch_size"
        assert_issue(quickly(), "note", "bad-config", key, "2 images", "16", "8 times")
        found = quickly(**{"train_dataloader.batch_size": 3})
        assert_issue(found, "error", "bad-config", key, "3 images", "16", "--global-batch")
        found = quickly(**{"optim_wrapper.accumulative_counts": 2})
        assert_issue(found, "warning", "bad-config", key, "4 images", "accumulative_counts")
        assert_issue(quickly(), "note", "bad-config", "norm_cfg", "2 images", "num_groups=32")

    def test_disk(self, tmp_path, monkeypatch):
        config = load_config(CONFIGS / "detection" / "cascade_convnext_t.py")
        config.work_dir, config.launcher = str(tmp_path / "a" / "b"), "none"
        # Weights and two of AdamW's states, all float32; four of three kept at the worst moment.
        expected = 3 * 85_930_578 * 4
        free = {}
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free["bytes"]))
        for share, severity in ((0.99, "error"), (1.5, "warning"), (2.5, None)):
            free["bytes"] = int(share * 4 * expected)
            found = [f for f in check_quickly(config) if f.code == "no-space"]
            assert [f.severity for f in found] == [severity] * (severity is not None)
        assert not (tmp_path / "a").exists()

    def test_pretrained_file(self, shapes, tmp_path):
        from backbones import ConvNeXt, ConvNeXtClassifier

        init = {"model__backbone__init_cfg": dict(type="Pretrained", checkpoint="none.pth")}
        issues = checked(DETECTION, shapes, **init)
        key = "model.backbone.init_cfg.checkpoint"
        (issue,) = [issue for issue in issues if issue.where == key]
        assert issue.severity == "error" and "none.pth" in issue.text
        for arch in ("atto", "femto"):
            path = tmp_path / f"{arch}.pth"
            torch.save(dict(model=ConvNeXtClassifier(arch).state_dict()), path)
            init["model__backbone__init_cfg"]["checkpoint"] = str(path)
            config = load_config(DETECTION, {k.replace("__", "."): v for k, v in init.items()})
            change_place(config, shapes)
            if arch == "atto":
                total = len(list(ConvNeXt("atto", layer_scale_init_value=1.0).parameters()))
                names = ("atto.pth", f"fills {total - 8}", f"{total} parameters", "norm0.weight")
                assert_issue(
                    check_all(config, memory=False), "note", "checkpoint-mismatch", key, *names
                )
            else:
                (issue,) = [f for f in check_all(config, memory=False) if f.where == key]
                assert issue.severity == "error"
                assert "femto.pth" in issue.text and "(48" in issue.text

    def test_a_file_that_is_not_here_is_not_downloaded(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        config = load_config(CONFIGS / "segmentation" / "upernet_convnext_t.py")
        config.launcher = "none"
        issues = check_all(config, memory=False)
        assert_issue(issues, "note", "not-found", "convnext_tiny_1k_224.pth", tmp_path)
        for split in ("train", "val"):
            names = (f"{split}_dataloader.dataset.data_root", "prepare_data.py")
            assert_issue(issues, "error", "not-found", *names)


def test_versions(monkeypatch):
    installed = {"torch": "2.4.0", "onedl-mmcv": "2.3.6", "mmcv": "2.1.0"}

    def version(name):
        if name not in installed:
            raise stack.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(stack, "version", version)
    issues = list(stack.check_stack())
    severities = {(f.severity, f.where): str(f) for f in issues}
    assert "2.4.0" in severities["warning", "torch"] and ">=2.11" in severities["warning", "torch"]
    assert "pip uninstall mmcv" in severities["warning", "mmcv"]
    assert "safetensors>=0.4.3" in severities["error", "safetensors"]
    assert not [f for f in issues if f.where == "onedl-mmcv"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes instead")
def test_dtypes_that_the_cpu_emulates():
    """Without oneDNN every processor is one that has no bfloat16."""
    config = load_config(DETECTION, {"inference_dtype": "bfloat16"})
    with torch.backends.mkldnn.flags(enabled=False):
        findings = list(stack.check_inference_dtype(config))
        where, names = "inference_dtype", ("bfloat16", "inference_dtype=float32")
        assert_issue(findings, "note", "unsupported", where, *names)
        assert not list(stack.check_inference_dtype(load_config(DETECTION)))
        kernels = torch.backends.cpu.get_cpu_capability()
        (line,) = [str(issue) for issue in stack.check_stack() if kernels in str(issue)]
        assert "float32" in line and "bfloat16" not in line


class TestTool:
    def test_status_and_json(self, shapes, faulty):
        clean = run_here("doctor.py", DETECTION, "--data", shapes, "--json")
        assert clean.status == 0, clean.out
        issues = json.loads(clean.out)
        assert {f["severity"] for f in issues} == {"note"}
        assert all(set(f) == {"severity", "where", "text", "advice", "code"} for f in issues)
        (faulty / "train2017" / "000000000004.jpg").unlink()
        bad = run_here("doctor.py", DETECTION, "--data", faulty)
        assert bad.status == 1
        assert re.search(r"^error +.*000000000004.jpg", bad.out, re.MULTILINE)
        assert "1 error, 0 warnings" in bad.out.splitlines()[-1]
        wrong = run_here("doctor.py", DETECTION, "--images", -1)
        assert_error(wrong, "bad-argument", "--images -1")
        wrong = run_here("doctor.py", DETECTION, "--cfg-options", "model.nekc=1")
        assert wrong.status == 2 and "model.nekc" in wrong.last_line

    def test_missing_data_is_a_finding(self, tmp_path):
        outcome = run_here("doctor.py", SEGMENTATION, "--data", tmp_path / "nowhere")
        assert outcome.status == 1 and str(tmp_path / "nowhere") in outcome.out


def test_a_run_does_not_begin_with_an_image_that_is_missing(faulty):
    path = faulty / "train2017" / "000000000004.jpg"
    path.unlink()
    config = load_config(DETECTION)
    change_place(config, faulty)
    with pytest.raises(InputError) as caught:
        check_data(config, ("train", "val"))
    assert (caught.value.code, caught.value.where) == ("bad-image", str(path))
    config.custom_hooks = [*(config.get("custom_hooks") or []), dict(type="SkipBadImagesHook")]
    check_data(config, ("train", "val"))
    assert_issue(check_all(config, memory=False), "warning", "bad-image", path)


def test_no_label_map_is_read_before_training(faulty):
    for path in (faulty / "annotations" / "training").iterdir():
        path.write_bytes(b"")
    config = load_config(SEGMENTATION)
    change_place(config, faulty)
    check_data(config, ("train", "val"))
    assert of_weight(check_all(config, memory=False))


def test_a_sample_is_named(shapes):
    config = load_config(DETECTION)
    change_place(config, shapes)
    issues = check_all(config, images=3, memory=False)
    for split, total in (("train", 8), ("val", 4)):
        key = f"{split}_dataloader.dataset"
        assert_issue(issues, "note", "bad-image", key, f"3 of {total} images opened")


def test_an_issue_becomes_an_error_and_back():
    issue = Issue("error", "model.x", "is wrong", "mend it", "bad-value")
    error = issue.as_error()
    assert (str(error), error.where, error.code) == (str(issue), "model.x", "bad-value")
    again = Issue.of(error, "config")
    assert (str(again), again.where, again.code) == (str(error), "model.x", "bad-value")
    assert Issue.of(InputError("lost"), "config").where == "config"


def test_pieces():
    assert spread(range(10), 0) == spread(range(10), 99) == list(range(10))
    assert spread(range(10), 4) == [0, 2, 5, 7]
    one, two = Issue("note", "a", "b"), Issue("error", "c", "d", "e")
    assert by_severity([one, two, one]) == [two, one] and str(two) == "c: d; e"
    config = load_config(CONFIGS / "detection" / "cascade_convnext_t.py")
    assert (1333, 480) in pipeline_scales(config.train_dataloader.dataset.pipeline)
    assert RunPlan.of(config).step_size() == (1344, 800)
    config = load_config(CONFIGS / "segmentation" / "upernet_convnext_t.py")
    assert RunPlan.of(config).step_size() == (512, 512)


def measured_and_predicted(path: Path, data: Path, images: int, side: int) -> tuple[float, float]:
    donor = DETECTION if path.parent.name == "detection" else SEGMENTATION
    script = REPOSITORY / "tests" / "support" / "memory_of_training.py"
    argv = [sys.executable, str(script), str(path), str(data), str(images), str(side), str(donor)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["measured"], figures["predicted"]


@pytest.mark.parametrize(
    "path, images, side", [(DETECTION, 4, 160), (SEGMENTATION, 8, 128)], ids=["box", "label"]
)
@pytest.mark.slow
def test_predicted_memory_of_the_demos(path, images, side, shapes):
    measured, predicted = measured_and_predicted(path, shapes, images, side)
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, images, side",
    [("detection/cascade_convnext_t", 1, 256), ("segmentation/upernet_convnext_t", 2, 256)],
)
def test_predicted_memory_of_the_recipes(path, images, side, shapes):
    measured, predicted = measured_and_predicted(CONFIGS / f"{path}.py", shapes, images, side)
    assert predicted == pytest.approx(measured, rel=0.15)
