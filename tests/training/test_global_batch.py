"""Few processes take the recipe's optimizer steps: how many, at which rates, on which gradients."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from support.deterministic import DETERMINISTIC
from support.running import DETECTION, REPOSITORY, SEGMENTATION, assert_error, command, run_here
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.global_batch import batch_norm_note, set_global_batch
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.training.micro_batches import StepBatchSampler, step_by_micro_batches
from backbones.openmmlab.training.runner import Runner
from backbones.openmmlab.training.step_guard import guard_steps

CONFIGS = REPOSITORY / "configs"
CASCADE = CONFIGS / "detection" / "cascade_convnext_t.py"
UPERNET = CONFIGS / "segmentation" / "upernet_convnext_t.py"
V2 = CONFIGS / "detection" / "mask_rcnn_convnextv2_b.py"


def launched(path, monkeypatch, processes: int, overrides: dict | None = None):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = load_config(path, overrides)
    config.launcher = "pytorch"
    return config


class TestArithmetic:
    @pytest.mark.parametrize(
        "path, processes, images, parts",
        [
            (CASCADE, 8, 2, 1), (CASCADE, 2, 4, 2), (CASCADE, 1, 2, 8), (CASCADE, 1, 16, 1),
            (UPERNET, 8, 2, 1), (UPERNET, 1, 2, 8), (UPERNET, 4, 1, 4),
            (V2, 8, 4, 1), (V2, 1, 4, 8),
        ],
    )  # fmt: skip
    def test_recipes_total(self, path, processes, images, parts, monkeypatch):
        config = launched(path, monkeypatch, processes, {"train_dataloader.batch_size": images})
        said = set_global_batch(config)
        total = 32 if path == V2 else 16
        start = (
            f"global batch size {total}: {processes} rank{'s' * (processes > 1)} x {images} image"
        )
        assert said.startswith(start)
        assert (f"x {parts} micro-batches accumulated" in said) == (parts > 1)
        assert config.train_dataloader.batch_size * processes == total
        hooks = [h for h in config.custom_hooks if h.type == "AccumulationHook"]
        assert [h.batch_size for h in hooks] == [images] * (parts > 1)
        # A config that was written into the work dir says the same again.
        assert set_global_batch(config) == said
        assert config.train_dataloader.batch_size * processes == total

    @pytest.mark.parametrize(
        "processes, images, total, ways",
        [
            (3, 2, None, ["16", "6", "--global-batch 12 or 18"]),
            (2, 3, None, ["batch_size=1 or 2 or 4 or 8", "--global-batch 12 or 18"]),
            (1, 32, None, ["batch_size=1 or 2 or 4 or 8 or 16", "--global-batch 32"]),
            (1, 2, 7, ["--global-batch 7", "batch_size=1 or 7", "--global-batch 6 or 8"]),
            (1, 2, 0, ["--global-batch 0", "--global-batch 2"]),
        ],
    )
    def test_does_not_divide(self, processes, images, total, ways, monkeypatch):
        config = launched(UPERNET, monkeypatch, processes, {"train_dataloader.batch_size": images})
        with pytest.raises(InputError) as error:
            set_global_batch(config, total)
        for words in ways:
            assert words in str(error.value)

    @pytest.mark.parametrize("law, factor", [(None, 1), ("linear", 4), ("sqrt", 2)])
    def test_learning_rate(self, law, factor, monkeypatch):
        options = {"param_scheduler.1.eta_min": 1e-6}
        config = launched(UPERNET, monkeypatch, 8, options)
        said = set_global_batch(config, 64, law)
        assert config.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * factor)
        assert config.param_scheduler[1].eta_min == pytest.approx(1e-6 * factor)
        assert ("stays 0.0001" in said) == (law is None)

    def test_refusals(self):
        with pytest.raises(InputError, match="auto_scale_lr.base_batch_size"):
            set_global_batch(load_config(DETECTION), 8, "linear")
        counted = load_config(UPERNET, {"optim_wrapper.accumulative_counts": 8})
        with pytest.raises(InputError, match="accumulative_counts"):
            set_global_batch(counted, 16)
        enabled = load_config(UPERNET, {"auto_scale_lr.enable": True})
        with pytest.raises(InputError, match="--scale-lr linear"):
            set_global_batch(enabled)
        outcome = run_here("train.py", UPERNET, "--global-batch", 9)
        assert_error(outcome, "bad-argument", "--global-batch", "8 or 10")

    def test_batch_norm_is_said_and_group_norm_taken(self, monkeypatch):
        config = launched(UPERNET, monkeypatch, 1)
        set_global_batch(config)
        note = batch_norm_note(config)
        assert re.findall(r"\d+", note)[:2] == ["2", "16"]
        key = "model.{}_head.norm_cfg"
        paths = [key.format(kind) for kind in ("decode", "auxiliary")]
        assert all(path in note for path in paths)
        options = {f"{path}.type": "GN" for path in paths}
        options |= {f"{path}.num_groups": 32 for path in paths}
        config = load_config(UPERNET, options)
        assert batch_norm_note(config) is None
        DefaultScope.get_instance("group-norm", scope_name="mmseg")
        with torch.device("meta"):
            head = MODELS.build(config.model.decode_head)
        assert any(isinstance(m, nn.GroupNorm) for m in head.modules())


def test_parts_keep_images_of_one_aspect_together():
    class Alike:
        """A sampler of 23 images, tall and wide in turn by threes."""

        dataset = None

        def __init__(self):
            self.dataset = self

        def get_data_info(self, index):
            return dict(width=1 + (index // 3) % 2, height=1.5)

        def __iter__(self):
            return iter(range(23))

        def __len__(self):
            return 23

    from torch.utils.data import Sampler

    class Tall(Alike, Sampler):
        pass

    load_config(DETECTION)  # registers mmdet
    DefaultScope.get_instance("aspect", scope_name="mmdet")
    sampler = StepBatchSampler(Tall(), 8, dict(type="AspectRatioBatchSampler"), 2)
    steps = list(sampler)
    assert [len(step) for step in steps] == [8, 8, 7] and len(sampler) == 3
    assert sorted(sum(steps, [])) == list(range(23))
    pairs = [step[i : i + 2] for step in steps for i in range(0, len(step), 2)]
    mixed = [p for p in pairs if len({(i // 3) % 2 for i in p}) > 1]
    assert len(mixed) <= 1  # what is left of both kinds at the end


@HOOKS.register_module()
class RecordingHook(Hook):
    """Notes the rates and the gradients of every optimizer step, and the average's updates."""

    def before_train(self, runner) -> None:
        self.rates, self.gradients = [], []
        optimizer = runner.optim_wrapper.optimizer
        step = optimizer.step

        def noted(*args, **kwargs):
            self.rates.append([group["lr"] for group in optimizer.param_groups])
            pairs = runner.model.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in pairs if p.grad is not None})
            return step(*args, **kwargs)

        optimizer.step = noted


def trained(path, data, work_dir, batch_size, total, options) -> tuple[RecordingHook, Runner]:
    config = load_config(
        path,
        {
            "train_dataloader.batch_size": batch_size,
            "train_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "randomness.seed": 0,
            **options,
        },
    )
    use_data(config, data)
    config.work_dir, config.launcher = str(work_dir), "none"
    config.custom_hooks = [dict(type="RecordingHook"), dict(type="EMAHook", begin_iter=2)]
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        config[key] = None
    set_global_batch(config, total)
    fit_to_machine(config)
    config.experiment_name = f"global-batch-{work_dir.name}"
    runner = Runner.from_cfg(config)
    runner.train()
    return next(h for h in runner.hooks if isinstance(h, RecordingHook)), runner


def averages(runner: Runner) -> int:
    (average,) = [hook.ema_model for hook in runner.hooks if hasattr(hook, "ema_model")]
    return int(average.steps)


def worst(first: dict, second: dict) -> float:
    """Largest difference of two sets of gradients, relative to the largest gradient of each."""
    assert first.keys() == second.keys()
    return max(
        float((first[n] - second[n]).abs().max() / first[n].abs().max().clamp(min=1e-4))
        for n in first
    )


@pytest.mark.slow
def test_segmentor_takes_the_same_steps(shapes, tmp_path):
    """1 x 2 x 4 against 1 x 8 by iterations: rates, counts, checkpoints, and the gradients."""
    options = {
        "train_cfg.max_iters": 6,
        "default_hooks.checkpoint.interval": 3,
        "model.decode_head.dropout_ratio": 0.0,
        "model.auxiliary_head.dropout_ratio": 0.0,
        "param_scheduler.0.end": 3,
        "param_scheduler.1.begin": 3,
        "param_scheduler.1.end": 6,
    }
    for head in ("decode_head", "auxiliary_head"):
        options |= {f"model.{head}.norm_cfg.type": "GN", f"model.{head}.norm_cfg.num_groups": 8}
    whole, one = trained(SEGMENTATION, shapes, tmp_path / "whole", 8, None, options)
    parts, two = trained(SEGMENTATION, shapes, tmp_path / "parts", 2, 8, options)
    assert len(whole.rates) == 6
    assert parts.rates == whole.rates
    assert len({rates[0] for rates in whole.rates}) == 5  # the warm-up ends in the top rate
    assert two.iter == one.iter == 6
    assert averages(two) == averages(one) > 3
    names = {path.name for path in (tmp_path / "parts").glob("*.pth")}
    assert names == {"iter_3.pth", "iter_6.pth"}
    # Crops have one size, so the mean over pixels is a mean over images: exact but for rounding.
    assert worst(whole.gradients[0], parts.gradients[0]) < 1e-3
    assert max(float(g.abs().max()) for g in whole.gradients[0].values()) > 1e-3


@pytest.mark.slow
def test_detector_takes_the_same_steps(shapes, tmp_path):
    """1 x 2 x 3 against 1 x 6 by epochs of 8 images: a step of three parts and one of one."""
    options = {"train_cfg.max_epochs": 3, "default_hooks.checkpoint.interval": 3}
    options["param_scheduler.0.end"] = 2
    whole, one = trained(DETECTION, shapes, tmp_path / "whole", 6, None, options)
    parts, two = trained(DETECTION, shapes, tmp_path / "parts", 2, 6, options)
    assert len(whole.rates) == 6
    assert parts.rates == whole.rates
    assert len({rates[0] for rates in whole.rates}) == 6
    assert two.iter == one.iter == 6
    assert averages(two) == averages(one)


def without_sampling(config) -> None:
    """All anchors and boxes count, so that nothing is drawn."""
    config.model.train_cfg.rpn.sampler.num = 10**6
    for stage in config.model.train_cfg.rcnn:
        stage.sampler.num = 10**6


def test_detector_gradient_is_that_of_processes(shapes):
    """1 x 2 x 2 is the mean of the gradients of 2 processes with 2 images, as DDP averages them.

    One batch of 4 is another gradient: its losses are normalised over all of its regions.
    """
    from mmengine.optim import OptimWrapper

    config = load_config(DETECTION)
    without_sampling(config)
    use_data(config, shapes)
    config.launcher = "none"
    fit_to_machine(config)
    DefaultScope.get_instance("gradients", scope_name="mmdet")
    loader = config.train_dataloader
    loader.update(num_workers=0, persistent_workers=False, batch_size=4)
    torch.manual_seed(0)
    np.random.seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # statistics as they are
            module.training = False
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))

    def gradients(steps) -> dict:
        model.zero_grad()
        steps()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def backward(data: dict, share: float) -> None:
        losses = model._run_forward(model.data_preprocessor(data, True), mode="loss")
        (model.parse_losses(losses)[0] * share).backward()

    def accumulated() -> None:
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
        guard_steps(wrapper, model)
        wrapper.zero_grad = lambda **_: None
        step_by_micro_batches(model.train_step, 2, batch, wrapper)

    halves = [
        {name: value[half] for name, value in batch.items()} for half in (slice(2), slice(2, 4))
    ]
    processes = gradients(lambda: [backward(half, 0.5) for half in halves])
    ours = gradients(accumulated)
    assert worst(processes, ours) < 1e-5
    whole = gradients(lambda: backward(batch, 1.0))
    flat = [torch.cat([g.flatten() for g in each.values()]) for each in (ours, whole)]
    assert 1e-4 < float((flat[0] - flat[1]).norm() / flat[1].norm()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION], ids=["detection", "segmentation"])
def test_two_processes_that_accumulate_equal_one(config, shapes, tmp_path):
    """2 x 1 x 2 under DDP takes the steps of one process: 1 x 1 x 4 of the detector, whose losses
    are normalised over the images of a part, and 1 x 4 of the segmentor.

    Every part has another image, so a gradient that is not exchanged, or that is exchanged or
    divided once too often, gives other weights.
    """
    detection = config == DETECTION
    batch_of_one = 1 if detection else 4
    options = ["default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=-1"]
    if detection:  # an epoch is a step
        options += ["train_cfg.max_epochs=4", "train_dataloader.dataset.indices=4"]
    runs = []
    for processes, batch in ((1, batch_of_one), (2, 1)):
        path, work_dir = tmp_path / f"on_{processes}.py", tmp_path / f"run_{processes}"
        path.write_text(DETERMINISTIC[config.parent.name].format(base=str(config), batch=batch))
        arguments = ("--data", shapes, "--work-dir", work_dir, "--global-batch", 4)
        argv = command("train.py", path, *arguments, "--cfg-options", *options)
        if processes == 2:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            argv = [*torchrun, "--nproc-per-node", "2", *argv[1:], "--launcher", "pytorch"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        parts = 4 // (processes * batch)
        assert (f"x {parts} micro-batches accumulated" in done.stdout) == (parts > 1)
        saved = sorted(work_dir.glob("*_*.pth"))
        assert [path.stem[-2:] for path in saved] == ["_1", "_2", "_3", "_4"]
        runs.append([flat(torch.load(path, weights_only=False)["state_dict"]) for path in saved])
    one, two = runs
    moved = (one[-1] - one[0]).norm()
    assert moved > 1e-2
    # Adam takes a gradient that is zero but for rounding for a sign, and later steps of a detector
    # may choose other proposals where two scores are as good as equal.
    for step in (0, -1):
        assert float((two[step] - one[step]).norm() / moved) < 1e-2


def flat(state: dict) -> torch.Tensor:
    return torch.cat([t.double().flatten() for t in state.values() if t.is_floating_point()])
