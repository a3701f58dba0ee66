"""Our runner beside mmengine's: what it replaces only in itself, and what its callers expect."""

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop
from mmengine.runner import Runner as MMEngineRunner
from support.running import REPOSITORY
from support.small_model import (
    SmallData,
    SmallModel,
    TwoOptimizers,
    arguments,
    built,
    loader,
    object_loader,
    validating,
)
from torch.utils.data import DataLoader

from backbones.errors import InputError
from backbones.openmmlab.mmengine_internals import safe_checkpoint_loading
from backbones.openmmlab.training import ema  # noqa: F401
from backbones.openmmlab.training.checkpointing import VerifiedCheckpointHook
from backbones.openmmlab.training.loops import (
    AutocastTestLoop,
    AutocastValLoop,
    SeededEpochLoop,
    SeededIterationLoop,
)
from backbones.openmmlab.training.runner import Runner
from backbones.openmmlab.training.seeded_data import Placed, SeededDataset, reading_seeded
from backbones.weights import read_checkpoint

UNHARMED = """
import inspect, json, sys, tempfile
from mmengine import registry
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader, Runner
from pathlib import Path
from support.small_model import arguments, validating

roots = [each for each in vars(registry).values() if isinstance(each, Registry)]
[root.import_from_location() for root in roots]

def state():
    classes = {f"{root.name}.{name}": f"{kind.__module__}.{kind.__qualname__}"
               for root in roots for name, kind in root.module_dict.items()
               if inspect.isclass(kind) or inspect.isfunction(kind)}
    schemes = {prefix: f"{reader.__module__}.{reader.__name__}"
               for prefix, reader in CheckpointLoader._schemes.items()}
    runner = Runner(**arguments(Path(tempfile.mkdtemp()), **validating()))
    runner.train()
    return dict(
        classes=classes, schemes=schemes,
        runner=[type(each).__name__ for each in (
            runner.train_loop, runner.val_loop, runner.optim_wrapper, *runner.hooks,
            runner.train_dataloader.batch_sampler)],
        patched=sorted(set(vars(runner.model)) | set(vars(runner.optim_wrapper))),
        weights=[p.tolist() for p in runner.model.parameters()],
    )

before = state()
import backbones.openmmlab.training.progress, backbones.openmmlab.training.runner
print(json.dumps([before, state()]))
"""


def test_mmengine_is_as_it_was_after_our_import():
    done = subprocess.run(
        [sys.executable, "-c", UNHARMED],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert len(before["classes"]) > 100 and "hook.CheckpointHook" in before["classes"]
    assert {name: after["classes"].get(name) for name in before["classes"]} == before["classes"]
    for key in ("schemes", "runner", "patched", "weights"):
        assert after[key] == before[key]
    assert "EpochBasedTrainLoop" in after["runner"] and "CheckpointHook" in after["runner"]


class TestWhatIsBuilt:
    @pytest.mark.parametrize(
        "train, kind",
        [
            (dict(by_epoch=True, max_epochs=1), SeededEpochLoop),
            (dict(by_epoch=False, max_iters=2), SeededIterationLoop),
            (dict(type="EpochBasedTrainLoop", max_epochs=1), SeededEpochLoop),
            (dict(type="IterBasedTrainLoop", max_iters=2), SeededIterationLoop),
            (dict(type=IterBasedTrainLoop, max_iters=2), SeededIterationLoop),
        ],
    )
    def test_loops(self, train, kind, tmp_path):
        runner = Runner(**arguments(tmp_path, train_cfg=train, **validating(type="ValLoop")))
        assert type(runner.train_loop) is kind
        assert type(runner.val_loop) is AutocastValLoop
        assert type(runner.test_loop) is AutocastTestLoop

    @pytest.mark.parametrize(
        "hooks",
        [
            None,
            dict(checkpoint=dict(type="CheckpointHook", interval=1)),
            dict(checkpoint=dict(type=CheckpointHook, interval=1)),
        ],
    )
    def test_checkpoint_hook(self, hooks, tmp_path):
        runner = Runner(**arguments(tmp_path, default_hooks=hooks))
        (hook,) = [each for each in runner.hooks if isinstance(each, CheckpointHook)]
        assert type(hook) is VerifiedCheckpointHook
        assert HOOKS.get("CheckpointHook") is CheckpointHook

    def test_the_users_own_stay(self, tmp_path):
        @LOOPS.register_module(force=True)
        class OwnLoop(EpochBasedTrainLoop):
            pass

        hook = CheckpointHook(interval=1)
        given = dict(train_cfg=dict(type="OwnLoop", max_epochs=1))
        runner = Runner(**arguments(tmp_path, default_hooks=dict(checkpoint=hook), **given))
        assert type(runner.train_loop) is OwnLoop and hook in runner.hooks

    def test_register_hooks_again(self, tmp_path):
        runner = Runner(**arguments(tmp_path))
        kinds = [type(hook) for hook in runner.hooks]
        runner.register_hooks(custom_hooks=[dict(type="EMAHook")])
        added = [type(hook).__name__ for hook in runner.hooks if type(hook) not in kinds]
        assert added == ["EMAHook"]

    @pytest.mark.parametrize(
        "train", [dict(type="EpochBasedTrainLoop", by_epoch=True, max_epochs=1), dict(max_epochs=1)]
    )
    def test_type_or_by_epoch(self, train, tmp_path):
        with pytest.raises(InputError) as caught:
            Runner(**arguments(tmp_path, train_cfg=train)).train()
        assert (caught.value.code, caught.value.where) == ("bad-config", "train_cfg")


class TestDataLoaderObject:
    @pytest.mark.parametrize(
        "train", [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=8)]
    )
    def test_is_used_as_it_is_and_resumed_at_its_place(self, train, tmp_path):
        given = object_loader()
        hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=train["by_epoch"]))
        made = arguments(tmp_path, train_dataloader=given, train_cfg=train, default_hooks=hooks)
        runner = Runner(**made)
        runner.train()
        assert runner.train_dataloader is given
        assert given.dataset.reads == [*range(8), *range(8)]
        # A run that ended in the middle of an epoch.
        saved = tmp_path / ("epoch_1.pth" if train["by_epoch"] else "iter_4.pth")
        content = torch.load(saved, weights_only=False)
        content["meta"].update(epoch=0, iter=3)
        torch.save(content, saved)
        resumed = object_loader()
        made = arguments(tmp_path / "again", train_dataloader=resumed, train_cfg=train)
        made.update(resume=True, load_from=str(saved))
        runner = Runner(**made)
        runner.train()
        assert runner.iter == 8

    def test_every_argument_of_a_loader_is_carried_over(self):
        """A new release that adds one fails here."""
        ours = {
            "dataset", "batch_sampler", "num_workers", "collate_fn", "pin_memory", "timeout",
            "worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor",
            "persistent_workers", "pin_memory_device", "in_order",
        }  # fmt: skip
        by_batch_sampler = {"batch_size", "shuffle", "sampler", "drop_last"}
        assert set(inspect.signature(DataLoader).parameters) == ours | by_batch_sampler
        given = dict(
            batch_size=3, num_workers=2, collate_fn=list, timeout=7.0, worker_init_fn=print,
            multiprocessing_context="spawn", generator=torch.Generator(), prefetch_factor=5,
            persistent_workers=True, in_order=False,
        )  # fmt: skip
        before = DataLoader(SmallData(), **given)
        after = reading_seeded(before)
        for name in ours - {"dataset", "multiprocessing_context"}:
            assert getattr(after, name) is getattr(before, name), name
        assert after.multiprocessing_context.get_start_method() == "spawn"
        assert after.dataset.source is before.dataset


class TestSeededDataset:
    def test_stands_for_its_source(self):
        source = SmallData("x")
        data = SeededDataset(source)
        assert len(data) == 8 and data.spoilt == () and data.metainfo == {}
        data.spoilt = (3,)  # as a hook sets a pipeline
        assert source.spoilt == (3,)
        for copied in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
            assert len(copied) == 8 and copied.source is not source and copied.spoilt == (3,)

    def test_draws_depend_on_the_place_alone(self):
        data = SeededDataset(SmallData())
        here, there = Placed(2, (1, 0, 0)), Placed(2, (1, 0, 1))
        first = data[here]["inputs"]
        torch.rand(5)
        assert torch.equal(data[here]["inputs"], first)
        assert not torch.equal(data[there]["inputs"], first)
        assert torch.equal(data.__getitems__([there, here])[1]["inputs"], first)


class TestSeveralOptimizers:
    def wrappers(self, model, **settings) -> OptimWrapperDict:
        return OptimWrapperDict(
            **{
                name: OptimWrapper(
                    torch.optim.AdamW(getattr(model, name).parameters(), 0.1), **settings
                )
                for name in ("first", "second")
            }
        )

    def test_trains_saves_and_resumes(self, tmp_path):
        """The run of two epochs equals one that was resumed after the first."""
        runs = []
        for epochs in ([2], [1, 2]):
            folder = tmp_path / str(len(runs))
            for count in epochs:
                torch.manual_seed(1)
                model = TwoOptimizers()
                given = arguments(folder, model=model, optim_wrapper=self.wrappers(model))
                given.update(train_cfg=dict(by_epoch=True, max_epochs=count))
                given.update(resume=count > 1 and len(epochs) > 1)
                Runner(**given).train()
            runs.append(read_checkpoint(folder / "epoch_2.pth"))
        one, two = (run["state_dict"] for run in runs)
        assert all(torch.equal(one[name], two[name]) for name in one)
        steps = [{int(s["step"]) for s in o["state"].values()} for o in one_optimizers(runs[1])]
        assert steps == [{8}, {8}]

    def test_ema_and_a_step_that_is_not_finite(self, tmp_path):
        model = TwoOptimizers()
        wrappers = self.wrappers(model)
        hooks = [dict(type="WeightAverageHook")]
        data = loader("train", spoilt=(2,))
        given = arguments(tmp_path, model=model, optim_wrapper=wrappers, custom_hooks=hooks)
        runner = Runner(**{**given, "train_dataloader": data})
        runner.train()
        assert runner.optim_wrapper is wrappers
        assert runner.message_hub.get_info("skipped_steps") == 1
        counts = {int(s["step"]) for w in wrappers.values() for s in w.optimizer.state.values()}
        assert counts == {3}


def one_optimizers(checkpoint: dict) -> list[dict]:
    return [checkpoint["optimizer"][name] for name in ("first", "second")]


def test_tf32_is_the_configs(tmp_path):
    for asked in (True, False):
        Runner(**arguments(tmp_path, env_cfg=dict(dist_cfg=dict(backend="gloo"), tf32=asked)))
        assert torch.backends.cuda.matmul.allow_tf32 is asked
        assert torch.backends.cudnn.allow_tf32 is asked


def test_cublas_is_deterministic_where_the_run_is(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    try:
        Runner(**arguments(tmp_path, randomness=dict(seed=0, deterministic=True)))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")  # what PyTorch takes
    finally:
        torch.use_deterministic_algorithms(False)


def test_validation_builds_no_training_data(tmp_path):
    for kind in (MMEngineRunner, Runner):
        built.clear()
        runner = kind(**arguments(tmp_path / kind.__module__, **validating()))
        assert runner.val()["mean"] != 0
        assert built == ["val"], kind
    assert (runner.epoch, runner.iter) == (0, 0)


def test_a_loop_that_steps_before_its_first_iteration(tmp_path):
    @LOOPS.register_module(force=True)
    class WarmUpLoop(IterBasedTrainLoop):
        def run(self):
            self.runner.call_hook("before_train")
            self.runner.model.train_step(next(iter(self.dataloader)), self.runner.optim_wrapper)
            return super().run()

    runner = Runner(**arguments(tmp_path, train_cfg=dict(type="WarmUpLoop", max_iters=2)))
    before = [p.clone() for p in runner.model.parameters()]
    runner.train()
    assert runner.iter == 2
    assert any((p != q).any() for p, q in zip(runner.model.parameters(), before, strict=True))


class TestInferenceDtype:
    def test_of_validation_and_test_but_not_of_training(self, tmp_path):
        config = Config(dict(inference_dtype="bfloat16"))
        runner = Runner(**arguments(tmp_path, cfg=config, **validating()))
        runner.train()
        model = runner.model
        assert model.dtypes == [torch.float32] * 4 + [torch.bfloat16] * 4
        runner.test()
        assert model.dtypes[8:] == [torch.bfloat16] * 4
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not {"val_step", "test_step", "train_step"} & set(vars(model))

    def test_a_loop_that_would_ignore_it(self, tmp_path):
        @LOOPS.register_module(force=True)
        class OwnValLoop(ValLoop):
            pass

        for dtype in ("float32", "bfloat16"):
            config = Config(dict(inference_dtype=dtype))
            given = arguments(tmp_path / dtype, cfg=config, **validating(type="OwnValLoop"))
            if dtype == "float32":
                Runner(**given).val()
                continue
            with pytest.raises(InputError) as caught:
                Runner(**given).val()
            assert (caught.value.code, caught.value.where) == ("unsupported", "val_cfg.type")


class TestCheckpointFolder:
    @pytest.mark.parametrize(
        "options",
        [
            dict(out_dir="s3://bucket/runs"),
            dict(backend_args=dict(backend="petrel")),
            dict(file_client_args=dict(backend="petrel")),
            dict(out_dir="petrel://x", backend_args=dict(backend="petrel")),
        ],
    )
    def test_a_remote_one_is_refused_before_training(self, options, tmp_path):
        hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, **options))
        with pytest.raises(InputError) as caught:
            Runner(**arguments(tmp_path / "run", default_hooks=hooks))
        assert caught.value.code == "unsupported"
        assert caught.value.where == options.get("out_dir", "backend_args")

    @pytest.mark.parametrize(
        "options",
        [dict(backend_args=dict(backend="local")), dict(file_client_args=dict(backend="disk"))],
    )
    def test_a_local_one_by_name(self, options, tmp_path):
        out = tmp_path / "elsewhere"
        hook = dict(type="CheckpointHook", interval=1, out_dir=str(out), **options)
        runner = Runner(**arguments(tmp_path / "run", default_hooks=dict(checkpoint=hook)))
        runner.train()
        state = read_checkpoint(out / "run" / "epoch_1.pth")["state_dict"]
        assert all(torch.equal(state[n], p) for n, p in runner.model.state_dict().items())

    def test_a_remote_one_of_a_caller(self, tmp_path):
        runner = Runner(**arguments(tmp_path))
        with pytest.raises(InputError) as caught:
            runner.save_checkpoint("s3://bucket", "x.pth")
        assert caught.value.code == "unsupported"


class Code:
    """Runs where it is read by pickle."""

    def __reduce__(self):
        return (SmallModel, ())


def test_files_that_modules_ask_for_are_read_safely_within_the_runner(tmp_path):
    from mmengine.runner import CheckpointLoader

    path = tmp_path / "x.pth"
    torch.save(dict(state_dict=dict(a=torch.ones(2)), code=Code()), path)
    before = dict(CheckpointLoader._schemes)
    with safe_checkpoint_loading():
        with pytest.raises(InputError) as caught:
            CheckpointLoader.load_checkpoint(str(path), logger=None)
        assert str(path) in str(caught.value)
    assert before == CheckpointLoader._schemes

    class Initialized(SmallModel):
        def init_weights(self):
            CheckpointLoader.load_checkpoint(str(path), logger=None)

    with pytest.raises(InputError):
        Runner(**arguments(tmp_path / "run", model=Initialized())).train()
    assert before == CheckpointLoader._schemes
