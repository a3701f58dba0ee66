"""ImageNet training: the network against its peers, the recipe against the official one's."""

import ast
import csv
import json
import math
import re
import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.registry import METRICS, MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from support.forked import run_forked
from support.oracles import randomise
from support.running import DETECTION, REPOSITORY, assert_error, run_here, run_tool
from torch import nn

from backbones import ARCHITECTURES, ConvNeXt, ConvNeXtClassifier, InputError
from backbones.openmmlab import classification
from backbones.openmmlab.config import load_config, validate
from backbones.openmmlab.doctor.complexity import build_on_meta, count
from backbones.openmmlab.training.schedule import trace
from backbones.weights import (
    TARGETS,
    find,
    from_official,
    load_pretrained,
    load_strictly,
    read_checkpoint,
)

FOLDER = REPOSITORY / "configs" / "classification"
DEMO = FOLDER / "convnext_atto_demo.py"
NAMES = dict(t="tiny", s="small", b="base", l="large", xl="xlarge")
SHAPES = ("circle", "square", "triangle", "star")
NARROW = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))


class Recipe(NamedTuple):
    drop_path_rate: float
    top1: float | None
    checkpoint: str | None = None  # trained from, its name in the zoo
    result: str | None = None  # the published weights of this experiment, their name in the zoo
    decay_rate: float = 1.0
    ema: bool = False
    size: int = 224


# Paper, Table 1 (top-1), Table 5 (training) and Table 6 (fine-tuning).
RECIPES = {
    f"convnext_{size}_in1k": Recipe(
        rate, top1, result=f"convnext_{NAMES[size]}_1k_224_ema", ema=True
    )
    for size, rate, top1 in zip("tsbl", (0.1, 0.4, 0.5, 0.5), (82.1, 83.1, 83.8, 84.3), strict=True)
}
RECIPES |= {
    f"convnext_{size}_in22k": Recipe(rate, None)
    for size, rate in zip(NAMES, (0.0, 0.0, 0.1, 0.1, 0.2), strict=True)
}
RECIPES |= {
    f"convnext_{size}_in22k_ft_in1k_{side}": Recipe(
        rate,
        top1,
        f"convnext_{NAMES[size]}_22k_224",
        f"convnext_{NAMES[size]}_22k_1k_{side}" + "_ema" * (size == "xl"),
        decay_rate=0.8,
        ema=size == "xl",
        size=side,
    )
    for side, scores in [
        (224, (82.9, 84.6, 85.8, 86.6, 87.0)),
        (384, (84.1, 85.8, 86.8, 87.5, 87.8)),
    ]
    for size, rate, top1 in zip(NAMES, (0.0, 0.1, 0.2, 0.3, 0.4), scores, strict=True)
}
RECIPES |= {
    "convnext_b_in1k_ft_384": Recipe(
        0.8, 85.1, "convnext_base_1k_224", "convnext_base_1k_384", 0.7, size=384
    ),
    "convnext_l_in1k_ft_384": Recipe(
        0.95, 85.5, "convnext_large_1k_224_ema", "convnext_large_1k_384", 0.7, size=384
    ),
}


@cache
def read(name: str):
    """The config, read once; not to be changed."""
    return load_config(FOLDER / f"{name}.py")


def classifier(**model) -> classification.ImageClassifier:
    settings = dict(num_classes=4, network=dict(type="ConvNeXtClassifier", arch=NARROW))
    return MODELS.build(dict(type="ImageClassifier") | settings | model)


class TestNetwork:
    @pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
    @pytest.mark.parametrize("library", ["timm", "torchvision"])
    def test_layer_by_layer(self, library, use_grn):
        """Names, shapes and parameters of every layer; its output's size, in the order they run."""
        if library == "torchvision" and use_grn:
            pytest.skip("torchvision has no V2")
        ours = ConvNeXtClassifier("tiny", use_grn=use_grn).eval()
        if library == "torchvision":
            theirs = torchvision.models.convnext_tiny().eval()
        else:
            theirs = timm.create_model("convnextv2_tiny" if use_grn else "convnext_tiny").eval()
        renamed = from_official(ours.state_dict(), TARGETS[library])
        assert {k: v.shape for k, v in renamed.items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }
        total = sum(p.numel() for p in ours.parameters())
        assert total == (28_635_496 if use_grn else 28_589_128)
        rows = [summary(model) for model in (ours, theirs)]
        assert rows[0] == rows[1]
        assert len(rows[0]) == 18 * 4 + 2 + 3 * 2 + 2  # blocks, stem, downsampling, norm and head

    def test_logits_equal_torchvision(self):
        ours = randomise(ConvNeXtClassifier("tiny", layer_scale_init_value=1.0)).eval()
        theirs = torchvision.models.convnext_tiny().eval()
        theirs.load_state_dict(from_official(ours.state_dict(), TARGETS["torchvision"]))
        x = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            a, b = ours(x), theirs(x)
        assert b.std() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))

    @pytest.mark.parametrize("size, gflops", [("t", 4.5), ("s", 8.7), ("b", 15.4), ("l", 34.4)])
    def test_published_cost(self, size, gflops):
        found = count(read(f"convnext_{size}_in1k"))
        assert found.size == (224, 224)
        assert found.macs["total"] / 1e9 == pytest.approx(gflops, abs=0.055)
        assert found.params["network"] == found.params["total"]


def summary(model: nn.Module) -> list[tuple[str, int, int]]:
    """(kind, parameters, numbers in its output) of every layer, in the order they run."""
    rows = []

    def note(module, _, output):
        kind = next(k for k in (nn.Conv2d, nn.LayerNorm, nn.Linear) if isinstance(module, k))
        rows.append((kind.__name__, sum(p.numel() for p in module.parameters()), output.numel()))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.LayerNorm | nn.Linear):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    return rows


class TestModel:
    def test_loss_without_mixing_is_smoothed_cross_entropy(self):
        model = classifier(label_smoothing=0.1)
        randomise(model)
        x, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 1])
        expected = F.cross_entropy(model(x), labels, label_smoothing=0.1)
        torch.testing.assert_close(model(x, labels, mode="loss")["loss"], expected)

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_loss_with_mixing(self, kind):
        """Pairs are first with last; targets mix by the share that each image really has."""
        model = classifier(label_smoothing=0.1, **{f"{kind}_alpha": 1.0})
        randomise(model)
        x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 1, 2])
        seen = []
        model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        np.random.seed(3)
        loss = model(x.clone(), labels, mode="loss")["loss"]
        (mixed,) = seen
        if kind == "mixup":
            share = ((mixed - x.flip(0)) / (x - x.flip(0))).median()
            torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
        else:
            kept = mixed == x
            assert (kept | (mixed == x.flip(0))).all()
            share = kept.float().mean()
        assert 0.05 < share < 0.95
        hard = F.one_hot(labels, 4).float() * 0.9 + 0.1 / 4
        targets = share * hard + (1 - share) * hard.flip(0)
        expected = F.cross_entropy(model.network(mixed), targets)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)

    def test_an_odd_batch_cannot_be_mixed(self):
        with pytest.raises(InputError) as caught:
            classifier(mixup_alpha=0.8)(
                torch.zeros(3, 3, 32, 32), torch.zeros(3).long(), None, "loss"
            )
        assert caught.value.where == "train_dataloader.batch_size" and "3" in str(caught.value)

    def test_classes_are_counted_once(self):
        network = dict(type="ConvNeXtClassifier", arch=NARROW, num_classes=3)
        with pytest.raises(InputError) as caught:
            classifier(network=network)
        assert (caught.value.code, caught.value.where) == (
            "bad-config",
            "model.network.num_classes",
        )

    def test_predictions_are_probabilities(self):
        model = randomise(classifier()).eval()
        x = torch.randn(2, 3, 32, 32)
        samples = model.test_step(dict(inputs=x, img_path=["a", "b"]))
        for sample, logits in zip(samples, model(x), strict=True):
            torch.testing.assert_close(sample.scores, logits.softmax(0))
            assert sample.label == logits.argmax()


def test_top_accuracy_equals_timms():
    metric = METRICS.build(dict(type="TopAccuracy", topk=(1, 5)))
    scores, labels = torch.randn(64, 9), torch.randint(9, (64,))
    for part in (slice(0, 40), slice(40, 64)):
        pairs = zip(scores[part], labels[part, None], strict=True)
        metric.process({}, [dict(scores=row, gt_label=label) for row, label in pairs])
    expected = timm.utils.accuracy(scores, labels, topk=(1, 5))
    found = metric.evaluate(64)
    assert found == pytest.approx({"top1": float(expected[0]), "top5": float(expected[1])})
    assert 2 < found["top1"] < found["top5"] < 98
    pairs = zip(scores, labels[:, None], strict=True)
    metric.process({}, [dict(scores=row[:5], gt_label=label) for row, label in pairs])
    assert set(metric.evaluate(64)) == {"top1"}  # of five classes the best five say nothing


class TestData:
    def test_training_transform_is_the_official_one(self):
        step = read("convnext_t_in1k").train_dataloader.dataset.pipeline[1]
        crop, flip, rand, *_, erase = Compose([step]).transforms[0].augment.transforms
        assert (crop.size, tuple(crop.scale)) == ((224, 224), (0.08, 1.0))
        assert crop.interpolation == torchvision.transforms.InterpolationMode.BICUBIC
        assert flip.p == 0.5
        official = timm.data.auto_augment.rand_augment_transform(
            "rand-m9-mstd0.5-inc1",
            dict(translate_const=100, img_mean=(124, 116, 104), interpolation=Image.BICUBIC),
        )
        assert str(rand) == str(official) and rand.num_layers == 2
        assert (erase.probability, erase.rand_color, erase.per_pixel) == (0.25, False, True)

    @pytest.mark.parametrize("size", [224, 288, 384])
    def test_test_transform_is_the_official_one(self, size):
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 255, (37, 51, 3), np.uint8)).resize((610, 430))
        oracle = timm.data.create_transform(
            size,
            interpolation="bicubic",
            crop_pct=1.0 if size >= 384 else 224 / 256,
            crop_mode="squash" if size >= 384 else "center",
        )
        step = Compose([dict(type="ResizeForTest", input_size=size)])
        found = step(dict(img=image, img_path="x.png", label=3))
        assert found["labels"] == 3 and found["inputs"].std() > 0.5
        torch.testing.assert_close(found["inputs"], oracle(image))

    def test_labels_follow_the_order_asked_for(self, shapes):
        build = classification.ClassFolders
        pipeline = [dict(type="LoadRGB"), dict(type="ResizeForTest", input_size=32)]
        dataset = build(shapes, split="classes/val", pipeline=pipeline, classes=SHAPES)
        assert dataset.metainfo["classes"] == SHAPES and len(dataset) == 4 * 8
        for i in (0, 9, 31):
            item = dataset[i]
            assert item["inputs"].shape == (3, 32, 32)
            assert SHAPES[item["labels"]] == Path(item["img_path"]).parent.name
        sorted_ = build(shapes, split="classes/val", pipeline=pipeline)
        assert sorted_.metainfo["classes"] == tuple(sorted(SHAPES))

    def test_imagenets_classes(self):
        folders, names = classification.ClassFolders.folders_and_names(Path(), "imagenet-1k")
        assert (len(folders), folders[0], names[0]) == (1000, "n01440764", "tench, Tinca tinca")
        assert list(folders) == sorted(folders)
        folders, _ = classification.ClassFolders.folders_and_names(Path(), "imagenet-22k")
        assert len(folders) == 21841 and list(folders) == sorted(folders)

    def test_arrays_are_read_as_files_are(self, shapes):
        import cv2

        path = next((shapes / "classes" / "val" / "star").iterdir())
        load = Compose([dict(type="LoadRGB")])
        one, two = load(dict(img_path=path)), load(dict(img=cv2.imread(str(path)), img_path="a"))
        assert np.abs(np.int16(one["img"]) - np.int16(two["img"])).max() <= 2  # two decoders

    @pytest.mark.parametrize("fault", ["missing", "empty", "text", "cut off"])
    def test_an_unreadable_image_is_named(self, shapes, tmp_path, fault):
        path = tmp_path / "broken.jpg"
        content = next((shapes / "classes" / "val" / "star").iterdir()).read_bytes()
        if fault != "missing":
            path.write_bytes({"empty": b"", "text": b"text", "cut off": content[:700]}[fault])
        with pytest.raises(InputError) as caught:
            Compose([dict(type="LoadRGB")])(dict(img_path=str(path)))
        assert (caught.value.code, caught.value.where) == ("bad-image", str(path))

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    def test_a_photo_held_upright_is_read_upright(self, tmp_path, orientation):
        """As OpenCV reads it for tools/predict.py."""
        import cv2
        from PIL import Image

        pixels = np.zeros((40, 80, 3), np.uint8)
        pixels[:20, :30] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "turned.jpg"
        Image.fromarray(pixels).save(path, exif=exif, quality=95)
        load = Compose([dict(type="LoadRGB")])
        one = load(dict(img_path=str(path)))
        two = load(dict(img_path=str(path), img=cv2.imread(str(path))))
        assert one["img"].size == two["img"].size == ((80, 40) if orientation == 3 else (40, 80))
        assert np.abs(np.int16(one["img"]) - np.int16(two["img"])).mean() < 2


@pytest.fixture
def faulty(shapes, tmp_path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "data"))


class TestMistakes:
    def test_missing_folder(self, tmp_path):
        outcome = run_here("train.py", DEMO, "--data", tmp_path)
        assert_error(outcome, "not-found", "classes/train", "--data")

    def test_class_count(self, shapes):
        option = "model.num_classes=5"
        outcome = run_here("train.py", DEMO, "--data", shapes, "--cfg-options", option)
        assert_error(outcome, outcome.code, "model.num_classes", "5", "4")

    def test_number_of_folders(self, faulty):
        (faulty / "classes" / "val" / "hexagon").mkdir()
        outcome = run_here("train.py", DEMO, "--data", faulty)
        assert_error(outcome, "class-mismatch", faulty / "classes" / "val", "5", "4", "hexagon")

    def test_class_without_a_folder(self, faulty):
        shutil.rmtree(faulty / "classes" / "train" / "star")
        outcome = run_here("train.py", DEMO, "--data", faulty)
        assert_error(outcome, "class-mismatch", faulty / "classes" / "train", "3", "star")

    def test_empty_class(self, faulty):
        for path in (faulty / "classes" / "train" / "star").iterdir():
            path.rename(path.with_suffix(".txt"))
        outcome = run_here("train.py", DEMO, "--data", faulty)
        assert_error(outcome, "no-data", faulty / "classes" / "train" / "star")

    def test_nothing_to_evaluate_on(self, tmp_path):
        outcome = run_here("test.py", FOLDER / "convnext_t_in22k.py", __file__)
        assert_error(outcome, outcome.code, "convnext_t_in22k.py", "test_dataloader")

    @pytest.mark.parametrize(
        "option, names",
        [
            ("model.mixup=0.8", ["mixup", "mixup_alpha"]),
            ("model.network.drop_path=0.1", ["drop_path", "drop_path_rate"]),
            ("train_dataloader.dataset.spilt=x", ["spilt", "split"]),
            ("optim_wrapper.paramwise_cfg.flat_decay_mult=0.0", ["flat_decay_mult"]),
        ],
    )
    def test_misspelled_option(self, option, names):
        outcome = run_here("train.py", DEMO, "--cfg-options", option)
        assert_error(outcome, outcome.code, *names)

    def test_paramwise_keys_are_those_of_the_constructor(self):
        config = load_config(DEMO)
        config.optim_wrapper.pop("constructor")
        with pytest.raises(InputError) as caught:
            validate(config)
        assert "paramwise_cfg.decay_rate" in str(caught.value)
        config.optim_wrapper.paramwise_cfg = dict(flat_decay_mult=0.0, bias_decay_mult=0.0)
        validate(config)


class TestConfigs:
    @pytest.mark.parametrize("name", RECIPES)
    def test_claim(self, name):
        recipe = RECIPES[name]
        text = (FOLDER / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 25
        claim = text.splitlines()[0]
        assert claim == f'"""{ast.get_docstring(ast.parse(text))}"""'
        score = f"Published: {recipe.top1} top-1." if recipe.top1 else "Not published."
        assert claim.endswith(f'. {score}"""')
        epochs = read(name).train_cfg.max_epochs
        size = name.split("_")[1].upper()
        data = "ImageNet-22k" if name.endswith("in22k") else "ImageNet-1k"
        for part in (f"ConvNeXt-{size}", f"{data} at {recipe.size}", f"{epochs} epochs"):
            assert part in claim
        if recipe.result:
            assert find(recipe.result).imagenet == recipe.top1

    def test_every_experiment_is_here(self):
        assert {p.stem for p in FOLDER.glob("convnext_*_in*.py")} == set(RECIPES)

    @pytest.mark.parametrize("name", RECIPES)
    def test_recipe(self, name):
        recipe, config = RECIPES[name], read(name)
        network, tuned = config.model.network, recipe.checkpoint is not None
        assert network.arch == NAMES[name.split("_")[1]]
        assert network.drop_path_rate == recipe.drop_path_rate
        model = build_on_meta(config)
        assert model.network.dims == ARCHITECTURES[network.arch]["dims"]
        assert len(model.network.head.bias) == (21841 if name.endswith("22k") else 1000)
        assert model.criterion.__class__ is (
            timm.loss.LabelSmoothingCrossEntropy if tuned else timm.loss.SoftTargetCrossEntropy
        )
        assert config.model.label_smoothing == 0.1
        if tuned:
            assert model.mixup is None and network.head_init_scale == 0.001
            weights = find(recipe.checkpoint)
            assert network.init_cfg.checkpoint == weights.source and weights.arch == network.arch
            assert network.init_cfg.get("replace_head", False) == ("22k" in name)
        else:
            mixup = model.mixup
            assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.switch_prob) == (0.8, 1.0, 0.5)
            assert (mixup.mix_prob, mixup.mode, mixup.label_smoothing) == (1.0, "batch", 0.1)
            assert "init_cfg" not in network and "head_init_scale" not in network
        wrapper = config.optim_wrapper
        lr, decay, batch = (5e-5, 1e-8, 512) if tuned else (4e-3, 0.05, 4096)
        assert wrapper.optimizer == dict(
            type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=decay
        )
        assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
        assert wrapper.paramwise_cfg.decay_rate == recipe.decay_rate
        assert config.auto_scale_lr.base_batch_size == batch
        assert batch % config.train_dataloader.batch_size == 0
        hooks = {hook.type: hook for hook in config.custom_hooks}
        assert ("WeightAverageHook" in hooks) == recipe.ema and "InterruptHook" in hooks
        if recipe.ema:
            assert hooks["WeightAverageHook"].decay == 0.9999
        augment = config.train_dataloader.dataset.pipeline[1]
        assert augment == dict(
            type="TimmAugment",
            input_size=recipe.size,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
        )
        assert config.train_dataloader.drop_last
        if name.endswith("in22k"):
            assert config.get("val_dataloader") is None and config.get("test_dataloader") is None
        else:
            for loader in (config.val_dataloader, config.test_dataloader):
                assert loader.dataset.pipeline[1].input_size == recipe.size


def official_schedule(peak: float, least: float, warm_up: int, iterations: int) -> np.ndarray:
    """From 0 to the peak, both included, then half a cosine: the formulas of the paper's code."""
    rising = [peak * i / (warm_up - 1) for i in range(warm_up)]
    left = iterations - warm_up
    falling = [least + (peak - least) * (1 + math.cos(math.pi * i / left)) / 2 for i in range(left)]
    return np.array(rising + falling)


class TestSchedule:
    @pytest.mark.parametrize(
        "name, epochs, warm_up, peak",
        [
            ("convnext_t_in1k", 300, 20, 4e-3),
            ("convnext_xl_in22k", 90, 5, 4e-3),
            ("convnext_b_in22k_ft_in1k_224", 30, 0, 5e-5),
            ("convnext_xl_in22k_ft_in1k_384", 30, 0, 5e-5),
        ],
    )
    def test_values_are_the_official_codes(self, name, epochs, warm_up, peak):
        length = 7
        values = trace(read(name), length)
        official = official_schedule(peak, 1e-6, warm_up * length, epochs * length)
        # Their lr_scale multiplies the whole schedule, its least value too.
        rate = RECIPES[name].decay_rate
        scales = {rate ** (13 - layer) for layer in range(14)}
        found = values.lr / official.max()
        peaks = values.lr.max(axis=0) / peak
        for group in range(found.shape[1]):
            assert min(abs(peaks[group] - scale) for scale in scales) < 1e-12
            np.testing.assert_allclose(
                values.lr[:, group], official * peaks[group], rtol=1e-9, atol=1e-8 * peak
            )
        assert len({round(p, 12) for p in peaks}) == len(scales)
        assert peaks.max() == pytest.approx(1)  # norm and head
        decay = 1e-8 if RECIPES[name].checkpoint else 0.05
        assert {float(v) for v in np.unique(values.weight_decay)} == {0.0, decay}
        assert (values.weight_decay == values.weight_decay[0]).all()
        if RECIPES[name].ema:
            np.testing.assert_allclose(values.ema_decay, 0.9999, rtol=1e-7)
        else:
            assert values.ema_decay is None

    def test_with_accumulation_the_average_moves_at_every_step(self):
        config = load_config(
            FOLDER / "convnext_t_in1k.py",
            {"optim_wrapper.accumulative_counts": 4, "train_cfg.max_epochs": 2},
        )
        moving = trace(config, 8).ema_decay < 1
        assert moving.nonzero()[0].tolist() == [3, 7, 11, 15]

    def test_tool_draws_and_writes(self, tmp_path):
        plot, table = tmp_path / "s.png", tmp_path / "s.csv"
        arguments = (FOLDER / "convnext_t_in1k.py", "--epoch-length", 2)
        outcome = run_here("schedule.py", *arguments, "--plot", plot, "--csv", table)
        assert outcome.status == 0, outcome.err
        rows = list(csv.DictReader(table.open()))
        assert len(rows) == 600 and float(rows[39]["lr_highest"]) == 4e-3
        assert np.asarray(Image.open(plot).convert("L")).std() > 5
        assert "600 iterations" in outcome.out

    def test_tool_counts_the_data_set(self, shapes, tmp_path):
        outcome = run_here(
            "schedule.py", DEMO, "--data", shapes,
            "--cfg-options", "train_dataloader.batch_size=3", "train_cfg.max_epochs=3",
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        assert "63 iterations" in outcome.out  # 64 images, the last one left out

    @pytest.mark.parametrize(
        "arguments, names",
        [
            ((DEMO, "--plot", "x.gif"), ["--plot", "x.gif", ".png"]),
            ((DEMO, "--plot", "nowhere/x.png"), ["nowhere"]),
            ((DEMO, "--epoch-length", "0"), ["--epoch-length", "0"]),
            ((FOLDER / "convnext_t_in1k.py",), ["data/imagenet/train"]),
        ],
    )
    def test_mistakes(self, arguments, names, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        outcome = run_here("schedule.py", *arguments)
        assert_error(outcome, outcome.code, *names)


class Normed(nn.Module):
    """A network with parameters and with buffers."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(self.norm(x).square().mean(dim=(2, 3)))


class Follow(Hook):
    """timm's average beside ours, updated where the official engine does."""

    priority = "VERY_LOW"

    def before_train(self, runner):
        self.average = timm.utils.ModelEma(runner.model, decay=0.9)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (batch_idx + 1) % runner.optim_wrapper._accumulative_counts == 0:
            self.average.update(runner.model)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_weight_average_is_timms(accumulated, tmp_path):
    if "Normed" not in MODELS.module_dict:
        MODELS.register_module(module=Normed)
    images = [
        dict(inputs=torch.randn(3, 8, 8) * (1 + i % 4), labels=i % 4, img_path="")
        for i in range(24)
    ]
    follow = Follow()

    def run(epochs: int, resume: bool = False) -> Runner:
        runner = Runner(
            dict(type="ImageClassifier", num_classes=4, network=dict(type="Normed")),
            str(tmp_path),
            train_dataloader=dict(
                batch_size=4,
                dataset=images,
                sampler=dict(type="DefaultSampler", shuffle=False),
                collate_fn=dict(type="default_collate"),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.5), accumulative_counts=accumulated),
            custom_hooks=[dict(type="WeightAverageHook", decay=0.9), *([] if resume else [follow])],
            resume=resume,
            default_scope="mmengine",
            experiment_name=f"average-{accumulated}-{epochs}-{resume}",
        )
        runner.train()
        return runner

    runner = run(3)
    oracle = follow.average.ema.state_dict()
    saved = torch.load(tmp_path / "epoch_3.pth", weights_only=False)
    for name, trained in runner.model.state_dict().items():
        torch.testing.assert_close(saved["ema_state_dict"][f"module.{name}"], trained)
        if trained.is_floating_point():
            torch.testing.assert_close(saved["state_dict"][name], oracle[name])
            assert (trained - oracle[name]).abs().max() > 1e-3

    # Resumed after two epochs, the average ends where it would have.
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    run(3, resume=True)
    again = torch.load(tmp_path / "epoch_3.pth", weights_only=False)
    for key in ("state_dict", "ema_state_dict"):
        for name, tensor in saved[key].items():
            torch.testing.assert_close(again[key][name], tensor)


class TestWeights:
    @pytest.mark.parametrize("layout", ["official", "timm"])
    def test_a_published_classifier_is_evaluated(self, layout, tmp_path):
        network = randomise(ConvNeXtClassifier(NARROW, num_classes=4))
        state = network.state_dict()
        tensors = state if layout == "official" else from_official(state, TARGETS["timm"])
        torch.save(dict(model=tensors), tmp_path / "published.pth")
        model = classifier()
        load_strictly(model, read_checkpoint(tmp_path / "published.pth"), "published.pth")
        for name, tensor in model.network.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)

    def test_other_classes_need_a_new_head(self, tmp_path):
        path = tmp_path / "22k.pth"
        trained = randomise(ConvNeXtClassifier(NARROW, num_classes=7)).state_dict()
        torch.save(dict(model=trained), path)
        tuned = ConvNeXtClassifier(NARROW, num_classes=4, head_init_scale=0.001)
        head = tuned.head.weight.clone()
        with pytest.raises(InputError) as caught:
            load_pretrained(tuned, path)
        for name in ("head.weight", "(7, 20)", "replace_head=True"):
            assert name in str(caught.value)
        coverage = load_pretrained(tuned, path, replace_head=True)
        assert set(coverage.initial) == set(coverage.ignored) == {"head.weight", "head.bias"}
        assert 0 < head.abs().max() < 1e-3 and torch.equal(tuned.head.weight, head)
        for name, tensor in tuned.state_dict().items():
            if not name.startswith("head"):
                assert torch.equal(tensor, trained[name])
        with pytest.raises(InputError) as caught:
            load_pretrained(ConvNeXt(NARROW), path, replace_head=True)

    def test_a_detector_starts_from_the_average_or_from_the_trained_weights(self, tmp_path):
        """A checkpoint holds both, the average as its weights."""
        average, trained = randomise(classifier()), randomise(classifier())
        ema = {"steps": torch.tensor(9)}
        ema |= {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
        torch.save(dict(state_dict=average.state_dict(), ema_state_dict=ema), tmp_path / "both.pth")
        for wrapper, source in ((None, average), ("ema_state_dict", trained)):
            backbone = ConvNeXt(NARROW)
            load_pretrained(backbone, tmp_path / "both.pth", wrapper=wrapper)
            stem = "downsample_layers.0.0.weight"
            assert torch.equal(backbone.state_dict()[stem], source.network.state_dict()[stem])


def test_train_evaluate_predict_and_start_a_detector(shapes, tmp_path, monkeypatch):
    """The same tools as for the other tasks; the checkpoint's ConvNeXt is a detector's backbone."""
    monkeypatch.chdir(tmp_path)
    options = (
        "train_cfg.max_epochs=2",
        "train_cfg.val_interval=2",
        "train_dataloader.batch_size=32",
        "default_hooks.checkpoint.interval=2",
        "default_hooks.logger.interval=1",
        "randomness.seed=0",
        "model.mixup_alpha=0.8",
        "model.cutmix_alpha=1.0",
        *(
            f"{split}_dataloader.{key}"
            for split in ("train", "val", "test")
            for key in ("num_workers=0", "persistent_workers=False")
        ),
    )
    arguments = ("--data", shapes, "--work-dir", tmp_path / "run", "--cfg-options", *options)
    trained = run_forked("train.py", DEMO, *arguments, cwd=tmp_path)
    assert trained.status == 0, trained.err
    losses = [float(x) for x in re.findall(r"loss: ([\d.]+)", trained.out)]
    assert len(losses) == 4 and all(0.5 < loss < 3 for loss in losses)
    checkpoint = tmp_path / "run" / "epoch_2.pth"

    tested = run_here("test.py", DEMO, checkpoint, *arguments)
    assert tested.status == 0, tested.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for key in ("top1", "top2"):
        validated = float(re.search(rf"{key}: ([\d.]+)", trained.out)[1])
        assert metrics[key] == pytest.approx(validated, abs=1e-3)

    images = shapes / "classes" / "val" / "star"
    predicted = run_here("predict.py", DEMO, checkpoint, images, "--out", "out")
    assert predicted.status == 0, predicted.err
    rows = list(csv.DictReader(open("out/predictions.csv")))
    for path in sorted(images.iterdir()):
        of_image = [row for row in rows if row["file"] == str(path)]
        assert [row["rank"] for row in of_image] == ["1", "2", "3", "4"]
        scores = [float(row["score"]) for row in of_image]
        assert sum(scores) == pytest.approx(1, abs=1e-5) and scores == sorted(scores)[::-1]
        assert all(SHAPES[int(row["label"])] == row["class"] for row in of_image)
        assert min(Image.open(f"out/pictures/{path.stem}.png").size) >= 480

    options = {
        "model.backbone.init_cfg.type": "Pretrained",
        "model.backbone.init_cfg.checkpoint": str(checkpoint),
    }
    config = load_config(DETECTION, options)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(config.model)
    detector.backbone.init_weights()
    saved = torch.load(checkpoint, weights_only=False)["state_dict"]
    for name, tensor in detector.backbone.state_dict().items():
        if name.startswith("norm"):
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        else:
            assert torch.equal(tensor, saved[f"network.{name}"]), name


@pytest.mark.slow
def test_demo_learns_the_shapes(tmp_path):
    outcome = run_tool("walkthrough.py", "classification", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    metrics = tmp_path / "work_dirs" / "convnext_atto_demo" / "metrics.json"
    assert json.loads(metrics.read_text())["top1"] > 80  # of 4 classes; 96.9 was measured
    assert "model.backbone.init_cfg.type=Pretrained" in outcome.out
