"""A run that was killed and resumed ends in the very bits of one that never was."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from support.forked import popen
from support.running import assert_error, run_here
from support.small_runs import six_steps

from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.training.checkpointing import last_whole_checkpoint
from backbones.openmmlab.training.runner import Runner
from backbones.openmmlab.training.seeded_data import (
    EndlessBatches,
    PlacedBatchSampler,
    SeededDataset,
)
from backbones.weights import check_archive, read_checkpoint
from benchmarks import kills

WORKERS = {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}


class Killed(BaseException):
    """Nothing in the stack catches it."""


@HOOKS.register_module()
class DieHook(Hook):
    """Ends the run as if it had been killed."""

    priority = "VERY_HIGH"

    def __init__(self, training: int = 0, validation: int = 0):
        self.training, self.validation = training, validation

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.training:
            raise Killed

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.validation:
            raise Killed


def train(
    folder: Path, data: Path, options: dict, *, resume: bool = False, die: dict | None = None
) -> Path:
    """Run the demo segmentor in this process."""
    train.count = getattr(train, "count", 0) + 1
    once = {"default_hooks.checkpoint.interval": 1, "default_hooks.checkpoint.max_keep_ckpts": 1}
    config = six_steps(folder.parent / "config", data, {**once, **options})
    config.work_dir, config.resume, config.launcher = str(folder), resume, "none"
    # mmengine keeps what it makes by these names.
    config.experiment_name = config.visualizer.name = f"run{train.count}"
    ema = dict(type="EMAHook", momentum=0.1)
    config.custom_hooks += [ema, *([dict(type="DieHook", **die)] if die else [])]
    fit_to_machine(config)
    try:
        Runner.from_cfg(config).train()
        assert not die
    except Killed:
        pass
    gc.collect()  # DataLoader workers of a killed run
    return folder


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("whole") / "run", shapes, {})


@pytest.mark.parametrize(
    "first, second, die",
    [
        ({}, {}, dict(training=5)),
        pytest.param(
            *(WORKERS, {"train_dataloader.num_workers": 1}, dict(training=3)),
            marks=pytest.mark.slow,
        ),
        pytest.param({}, WORKERS, dict(validation=3), marks=pytest.mark.slow),
        pytest.param({}, {}, dict(validation=6), marks=pytest.mark.slow),
    ],
    ids=["step", "workers", "validation", "last-validation"],
)
def test_resumed_is_bit_identical(first, second, die, whole, shapes, tmp_path):
    folder = train(tmp_path / "run", shapes, first, die=die)
    if "training" in die:
        assert (folder / f"iter_{die['training'] - 1}.pth").is_file()
    train(folder, shapes, second, resume=True)
    assert kills.differences(whole, folder) == []


def test_runs_that_differ_are_told_apart(whole, shapes, tmp_path):
    """The comparison sees a different seed, a single flipped bit and a missing score."""
    other = train(tmp_path / "other", shapes, {"randomness.seed": 4})
    assert any("state_dict" in line for line in kills.differences(whole, other))
    copy = shutil.copytree(whole, tmp_path / "copy")
    saved = torch.load(copy / "iter_6.pth", weights_only=False)
    name = next(key for key in saved["ema_state_dict"] if key.endswith("bias"))
    saved["ema_state_dict"][name].view(torch.int32)[0] ^= 1
    torch.save(saved, copy / "iter_6.pth")
    assert kills.differences(whole, copy) == [f"iter_6.pth.ema_state_dict.{name}"]
    copy = shutil.copytree(whole, tmp_path / "second")
    (path,) = copy.glob("*/vis_data/scalars.json")
    lines = [line for line in path.read_text().splitlines() if "mIoU" not in line]
    path.write_text("\n".join(lines))
    assert [line for line in kills.differences(whole, copy) if "validation" in line]


@pytest.mark.slow
def test_gradient_accumulation_under_way_is_resumed(shapes, tmp_path):
    options = {"optim_wrapper.accumulative_counts": 4, "train_cfg.val_interval": 6}
    one = train(tmp_path / "one", shapes, options)
    other = train(tmp_path / "other", shapes, options, die=dict(training=4))
    (saved,) = other.glob("iter_*.pth")
    gradients = read_checkpoint(saved)["training_state"]["processes"][0]["gradients"]
    assert saved.name == "iter_3.pth" and sum(g.abs().sum() for g in gradients.values()) > 0
    train(other, shapes, options, resume=True)
    assert kills.differences(one, other) == []


@pytest.mark.slow
def test_drawn_seed_is_kept(shapes, tmp_path):
    options = {"randomness.seed": None, "train_cfg.max_iters": 3}
    folder = train(tmp_path / "run", shapes, options, die=dict(training=2))
    train(folder, shapes, options, resume=True)
    seed = read_checkpoint(folder / "iter_3.pth")["meta"]["seed"]
    options["randomness.seed"] = seed
    assert kills.differences(train(tmp_path / "whole", shapes, options), folder) == []


def test_another_number_of_ranks_is_logged(shapes, tmp_path, capsys):
    folder = train(tmp_path / "run", shapes, {}, die=dict(training=2))
    saved = torch.load(folder / "iter_1.pth", weights_only=False)
    saved["training_state"]["world_size"] = 2
    torch.save(saved, folder / "iter_1.pth")
    train(folder, shapes, {"train_cfg.max_iters": 2}, resume=True)
    out, err = capsys.readouterr()
    (line,) = [line for line in (out + err).splitlines() if "not bit for bit" in line]
    for words in ("2 ranks", "on 1", "epoch 0", "iteration 1"):
        assert words in line


class Sized(list):
    """Samples that show what they were read with."""

    def __init__(self, indices):
        super().__init__(indices)
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def placed(length: int, batch_size: int, infinite: bool) -> PlacedBatchSampler:
    from mmengine.dataset import DefaultSampler, InfiniteSampler

    kind = InfiniteSampler if infinite else DefaultSampler
    return PlacedBatchSampler(kind(Sized(range(length)), seed=5), batch_size, seed=5)


@pytest.mark.parametrize("infinite", [True, False])
@pytest.mark.parametrize("skipped", [1, 3, 4, 9])
def test_skipping_reads_nothing_and_goes_on_alike(infinite, skipped):
    def loader():
        batches = placed(7, 2, infinite)
        data = Sized(range(7))
        loader = torch.utils.data.DataLoader(
            SeededDataset(data), batch_sampler=batches, collate_fn=list
        )
        return loader, data

    whole, _ = loader()
    stream = EndlessBatches(whole)
    expected = [next(stream) for _ in range(14)]
    assert len({sample[1:] for batch in expected for sample in batch}) == sum(map(len, expected))
    resumed, data = loader()
    stream = EndlessBatches(resumed)
    stream.skip_iter(skipped)
    assert [next(stream) for _ in range(14 - skipped)] == expected[skipped:]
    assert len(data.reads) == sum(map(len, expected[skipped:]))


def test_every_kind_of_draw_has_its_own_stream():
    from backbones.openmmlab.training.seeds import SAMPLE, STEP, seed_draws

    drawn = set()
    entropies = [
        (kind, 0, rank, step) for kind in (STEP, SAMPLE) for rank in (0, 1) for step in (0, 1)
    ]
    for entropy in entropies:
        seed_draws(*entropy)
        draws = random.random(), np.random.rand(), torch.rand(()).item()
        seed_draws(*entropy)
        assert draws == (random.random(), np.random.rand(), torch.rand(()).item())
        drawn.add(draws)
    assert len(drawn) == len(entropies)


class TestFiles:
    def test_a_write_that_fails_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "x.json"
        write_atomically(path, "before")
        with pytest.raises(ZeroDivisionError), atomic_path(path) as part:
            part.write_text("half")
            raise ZeroDivisionError
        with pytest.raises(InputError) as caught:
            with atomic_path(path) as part:
                part.write_text("half")
                raise OSError(28, "No space left on device")
        assert (caught.value.code, caught.value.where) == ("no-space", str(path))
        assert path.read_text() == "before" and os.listdir(tmp_path) == ["x.json"]

    def test_any_bit_that_counts_is_missed_by_torch_and_seen_here(self, tmp_path):
        path = tmp_path / "x.pth"
        content = dict(a=torch.randn(1000), b=[1, "two"])
        torch.save(content, path)
        whole = path.read_bytes()
        draw = random.Random(0)
        silent = 0
        for _ in range(200):
            flipped = bytearray(whole)
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            try:
                loaded = torch.load(path)
                same = torch.equal(loaded["a"], content["a"]) and loaded["b"] == content["b"]
            except Exception:
                continue
            if not same:
                silent += 1
                with pytest.raises(InputError) as caught:
                    check_archive(path)
                assert "x.pth" in str(caught.value)
        assert silent > 50
        path.write_bytes(whole)
        check_archive(path)

    @pytest.mark.parametrize("damage", ["cut", "bit", "empty", "missing"])
    def test_the_checkpoint_before_a_damaged_one_is_taken(self, damage, tmp_path, capsys):
        MMLogger.get_instance(f"damaged by {damage}")  # writes to what is captured here
        for step in (1, 2, 3):
            torch.save(
                dict(state_dict=dict(x=torch.full((99,), step))), tmp_path / f"iter_{step}.pth"
            )
            os.utime(tmp_path / f"iter_{step}.pth", ns=(step, step))
        write_atomically(tmp_path / "last_checkpoint", "/where/it/was/before/iter_3.pth")
        path = tmp_path / "iter_3.pth"
        assert last_whole_checkpoint(tmp_path)[0] == path
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes({"cut": content[:700], "bit": content, "empty": b""}[damage])
            os.utime(path, ns=(3, 3))
        found, checkpoint = last_whole_checkpoint(tmp_path)
        assert found.name == "iter_2.pth" and checkpoint["state_dict"]["x"][0] == 2
        out, err = capsys.readouterr()
        assert "iter_3.pth" in out + err

    def test_nothing_whole_is_an_error_and_nothing_at_all_a_beginning(self, tmp_path):
        assert last_whole_checkpoint(tmp_path) is None
        (tmp_path / "iter_1.pth").write_bytes(b"PK\x03\x04")
        with pytest.raises(InputError) as caught:
            last_whole_checkpoint(tmp_path)
        assert (caught.value.code, caught.value.where) == ("broken-file", str(tmp_path))


@pytest.mark.slow
def test_campaign(tmp_path, monkeypatch, capsys):
    """Ten kills of whole processes at random moments, of both tasks, on one rank and on two."""
    forking = SimpleNamespace(Popen=popen, run=subprocess.run)
    monkeypatch.setattr(kills, "subprocess", forking)
    out = tmp_path / "out"
    for options in (["8"], ["10", "--resume"]):
        argv = ["kills.py", "--jobs", "2", "--out", str(out), "--runs", *options]
        monkeypatch.setattr(sys, "argv", argv)
        kills.main()
    printed = capsys.readouterr().out
    assert "  10 run" in printed and printed.count("   8 run") == 1
    result = json.loads((tmp_path / "out" / "kills.json").read_text())
    assert result["identical"] == result["runs"] == 10
    assert sum(result["moments"].values()) >= 8
    scores = [
        json.loads(line).get("mIoU", 0)
        for path in (tmp_path / "out").glob("segmentation_1_whole/*/vis_data/scalars.json")
        for line in path.read_text().splitlines()
    ]
    assert max(scores) > 1  # the scores that agree are not all zero


def test_campaign_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "x").touch()
    arguments = ("kills.py", "--runs", 1, "--out", tmp_path)
    assert_error(run_here(*arguments), "bad-argument", tmp_path)
    assert_error(run_here(*arguments, "--resume"), "not-found", tmp_path / "kills.json")
