"""Guarded optimizer steps: finite on every rank, in micro-batches, with a loss scaler or none."""

import copy
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop
from support.forked import preload
from support.running import free_port
from support.small_model import SmallModel, arguments, loader
from torch import distributed, multiprocessing, nn

from backbones.errors import InputError
from backbones.openmmlab.precision import without_bfloat16_scaler
from backbones.openmmlab.training import step_guard
from backbones.openmmlab.training.micro_batches import step_by_micro_batches
from backbones.openmmlab.training.ranks import any_rank_each
from backbones.openmmlab.training.runner import Runner
from backbones.openmmlab.training.step_guard import guard_steps


def batch(images: int = 6) -> dict:
    return dict(inputs=list(torch.randn(images, 2)), data_samples=list(torch.ones(images, 1)))


def guarded(model: nn.Module, kind: type = OptimWrapper, **settings) -> OptimWrapper:
    wrapper = kind(optimizer=torch.optim.AdamW(model.parameters(), 0.1), **settings)
    guard_steps(wrapper, model)
    return wrapper


def step(model: nn.Module, wrapper: OptimWrapper) -> None:
    """Step without autocast: mmengine's knows bfloat16 alone on a CPU."""
    wrapper.update_params(model(**batch(), mode="loss")["loss"])


class OwnWrapper(OptimWrapper):
    """A user's, with something of its own in each step."""

    steps = 0

    def step(self, **kwargs) -> None:
        self.steps += 1
        super().step(**kwargs)


class TestGuard:
    def test_keeps_the_object_its_class_and_its_steps(self):
        model, twin = SmallModel(), SmallModel()
        twin.load_state_dict(model.state_dict())
        plain = OwnWrapper(torch.optim.AdamW(twin.parameters(), 0.1))
        ours = OwnWrapper(torch.optim.AdamW(model.parameters(), 0.1))
        guard = guard_steps(ours, model)
        assert guard_steps(ours, model) is guard and isinstance(ours, OwnWrapper)
        assert type(plain) is OwnWrapper  # the class itself is not changed
        for _ in range(3):
            data = batch()
            model.train_step(data, ours)
            twin.train_step(copy.deepcopy(data), plain)
        assert ours.steps == plain.steps == 3
        for own, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(own, other)

    @pytest.mark.parametrize("spoilt", ["loss", "gradient"])
    def test_skips_what_is_not_finite(self, spoilt):
        model = SmallModel()
        wrapper = guarded(model, OwnWrapper)
        model.train_step(batch(), wrapper)
        before = copy.deepcopy([model.state_dict(), wrapper.state_dict()])
        if spoilt == "loss":
            handle = model.second.register_forward_hook(lambda *given: given[2] * torch.inf)
        else:
            handle = model.second.weight.register_hook(lambda gradient: gradient / 0)
        wrapper.guard.begin_iteration()
        norms = {k: v.clone() for k, v in model.norm.state_dict().items()}
        model.train_step(batch(), wrapper)
        handle.remove()
        assert wrapper.guard.bad and wrapper.steps == 1
        if spoilt == "gradient":
            assert wrapper.guard.gradient == "second.weight"
        model.norm.load_state_dict(norms)  # which the hook puts back in a run
        compare(before, [model.state_dict(), wrapper.state_dict()])
        wrapper.guard.begin_iteration()
        model.train_step(batch(), wrapper)
        assert not wrapper.guard.bad and wrapper.steps == 2

    def test_each_of_several_optimizers(self):
        model = SmallModel()
        parts = {
            name: OptimWrapper(torch.optim.SGD(getattr(model, name).parameters(), 0.1))
            for name in ("first", "second")
        }
        guard_steps(OptimWrapperDict(**parts), model)
        assert parts["first"].guard is parts["second"].guard
        weights = {name: getattr(model, name).weight.clone() for name in parts}
        parts["first"].update_params(model.first.weight.sum() * torch.nan)
        parts["second"].update_params(model.second.weight.sum())
        assert torch.equal(model.first.weight, weights["first"])
        assert not torch.equal(model.second.weight, weights["second"])
        assert parts["first"].guard.bad

    def test_schedulers_that_were_built_before(self):
        from mmengine.optim import ConstantLR

        model = SmallModel()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
        ConstantLR(wrapper, factor=0.5)
        guard_steps(wrapper, model)
        before = model.first.weight.clone()
        wrapper.update_params(model.first.weight.sum() * torch.nan)
        assert torch.equal(model.first.weight, before)


class TestMicroBatches:
    def test_equals_one_step_on_the_batch(self):
        one, other = SmallModel().eval(), SmallModel().eval()
        other.load_state_dict(one.state_dict())
        data = batch()
        whole, parts = guarded(one), guarded(other)
        for _ in range(3):
            one.train_step(data, whole)
            step_by_micro_batches(other.train_step, 2, data, parts)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q)
        assert parts.should_update() and parts.should_sync()

    def test_one_message_a_step(self, monkeypatch):
        sent = []
        counting = lambda flags: sent.append(len(flags)) or any_rank_each(flags)  # noqa: E731
        monkeypatch.setattr(step_guard, "any_rank_each", counting)
        model = SmallModel()
        wrapper = guarded(model)
        step_by_micro_batches(model.train_step, 2, batch(), wrapper)
        model.train_step(batch(), wrapper)
        assert sent == [3, 3]

    @pytest.mark.parametrize("spoilt", [0, 5])
    def test_one_that_is_not_finite_spoils_the_step(self, spoilt):
        model = SmallModel()
        wrapper, data = guarded(model), batch()
        data["inputs"][spoilt] *= torch.nan
        before = copy.deepcopy(dict(model.named_parameters()))
        step_by_micro_batches(model.train_step, 2, data, wrapper)
        assert wrapper.guard.bad and not wrapper.optimizer.state
        compare(before, dict(model.named_parameters()))

    def test_a_loop_that_would_not_take_them(self, tmp_path):
        @LOOPS.register_module(force=True)
        class PlainLoop(EpochBasedTrainLoop):
            pass

        given = arguments(
            tmp_path,
            train_cfg=dict(type="PlainLoop", max_epochs=1),
            custom_hooks=[dict(type="AccumulationHook", batch_size=1)],
        )
        with pytest.raises(InputError) as caught:
            Runner(**given).train()
        assert (caught.value.code, caught.value.where) == ("unsupported", "train_cfg.type")

    def test_in_a_run(self, tmp_path):
        """Steps, iterations and losses of a run in micro-batches are those of a run without."""
        losses, weights = [], []
        for hooks in ([], [dict(type="AccumulationHook", batch_size=1)]):
            torch.manual_seed(0)
            model = SmallModel()
            model.norm = nn.Identity()
            runner = Runner(
                **arguments(tmp_path / str(len(losses)), model=model, custom_hooks=hooks)
            )
            runner.train()
            assert runner.iter == 4 and "train_step" not in vars(model)
            losses.append(runner.message_hub.get_scalar("train/loss").data[0])
            weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        torch.testing.assert_close(*weights)
        assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 4


def tell_each_other(rank: int) -> None:
    """Only rank 1 is not finite, only rank 0 is asked to stop, in different steps."""
    model = SmallModel()
    wrapper = guarded(model)
    guard = wrapper.guard
    told = []
    for step in range(3):
        guard.begin_iteration()
        guard.asked_to_stop = lambda step=step: step == 2 and rank == 0
        data = batch()
        if step == 1 and rank == 1:
            data["inputs"][0] *= torch.nan
        model.train_step(data, wrapper)
        told.append((guard.bad, guard.stop))
    assert told == [(False, False), (True, False), (False, True)]
    assert {int(s["step"]) for s in wrapper.optimizer.state.values()} == {2}


def tell_each_other_under_ddp(rank: int) -> None:
    """A loss of rank 1, its gradients, and rank 0's stop: told before gradients are looked at."""
    model = SmallModel()
    wrapper = guarded(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    guard, sent = wrapper.guard, []
    guard.same_gradients = True
    with patch.object(
        step_guard, "any_rank_each", lambda flags: sent.append(flags) or any_rank_each(flags)
    ):
        told = []
        for step in range(4):
            guard.begin_iteration()
            guard.asked_to_stop = lambda step=step: step == 3 and rank == 0
            data = batch()
            if step == 2 and rank == 1:
                data["inputs"][0] *= torch.nan
            loss = parallel(**data, mode="loss")["loss"]
            if step == 1 and rank == 1:
                loss = loss + torch.inf  # whose gradient is finite
            wrapper.update_params(loss)
            told.append((guard.bad, guard.gradient is not None, guard.stop))
    assert told == [
        (False, False, False), (True, False, False), (True, True, False), (False, False, True)
    ]  # fmt: skip
    bad = [False, rank == 1, rank == 1, False]
    assert sent == [[bad[step], False, step == 3 and rank == 0] for step in range(4)]
    assert {int(s["step"]) for s in wrapper.optimizer.state.values()} == {2}


def run_rank(rank: int, port: int, told: Callable[[int], None]) -> None:
    """Run one of two ranks, which draw the same weights and images."""
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    told(rank)
    distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [tell_each_other, tell_each_other_under_ddp])
def test_ranks_learn_both_in_one_message(ranks):
    preload()
    multiprocessing.start_processes(
        run_rank, (free_port(), ranks), nprocs=2, start_method="forkserver"
    )


class TestLossScaler:
    @pytest.fixture(autouse=True)
    def on_cpu(self, monkeypatch):
        """mmengine asks for a GPU, and for its scaler; PyTorch has one for the CPU too."""
        monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
        scaler = partial(torch.amp.GradScaler, device="cpu", init_scale=8.0)
        monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", scaler)

    def wrapper(self, tmp_path, **settings) -> OptimWrapper:
        given = dict(type="AmpOptimWrapper", optimizer=dict(type="AdamW", lr=0.1), **settings)
        return Runner(**arguments(tmp_path)).build_optim_wrapper(given)

    @pytest.mark.parametrize(
        "settings, enabled",
        [
            (dict(dtype="bfloat16"), False),
            (dict(dtype=torch.bfloat16), False),
            (dict(dtype="float16"), True),
            (dict(), True),
            (dict(dtype="float16", loss_scale=dict(enabled=False)), False),
            (dict(dtype="bfloat16", loss_scale=dict(enabled=False)), False),
            (dict(dtype="bfloat16", loss_scale="dynamic"), True),
            (dict(dtype="bfloat16", loss_scale=dict(growth_interval=3)), True),
        ],
    )
    def test_by_dtype_and_as_the_config_sets_it(self, settings, enabled, tmp_path):
        assert self.wrapper(tmp_path, **settings).loss_scaler.is_enabled() == enabled

    def test_configs_that_are_left_alone(self):
        for given in (
            dict(type="OptimWrapper", dtype="bfloat16"),
            dict(optimizer=dict(type="SGD")),
            dict(type=OwnWrapper, dtype="bfloat16"),
        ):
            assert without_bfloat16_scaler(given) is given

    @pytest.mark.parametrize("before", ["bfloat16", "float16", None])
    @pytest.mark.parametrize("after", ["bfloat16", "float16", None])
    def test_resumes_from_any_to_any(self, before, after, tmp_path):
        """None: float32, as on a machine without a GPU."""
        kinds = {
            None: dict(type="OptimWrapper"),
            "bfloat16": dict(type="AmpOptimWrapper", dtype="bfloat16"),
            "float16": dict(type="AmpOptimWrapper", dtype="float16"),
        }
        saved, resumed = SmallModel(), SmallModel()
        first, second = (
            self.of(model, kinds[kind]) for model, kind in ((saved, before), (resumed, after))
        )
        step(saved, first)
        if before == "float16":
            first.loss_scaler.update(4.0)
        state = copy.deepcopy(first.state_dict())
        second.load_state_dict(copy.deepcopy(state))
        compare(second.optimizer.state_dict(), first.optimizer.state_dict())
        if after == "float16":
            scale = second.loss_scaler.get_scale()
            assert scale == (4.0 if before == "float16" else 8.0)
        step(resumed, second)
        assert {int(s["step"]) for s in second.optimizer.state.values()} == {2}

    def of(self, model: nn.Module, settings: dict) -> OptimWrapper:
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        wrapper = OPTIM_WRAPPERS.build(
            without_bfloat16_scaler({**settings, "optimizer": optimizer})
        )
        guard_steps(wrapper, model)
        return wrapper

    def test_scale_falls_where_a_gradient_overflows(self):
        model = SmallModel()
        wrapper = self.of(model, dict(type="AmpOptimWrapper", dtype="float16"))
        handle = model.second.weight.register_hook(lambda gradient: gradient / 0)
        before = copy.deepcopy(dict(model.named_parameters()))
        step(model, wrapper)
        handle.remove()
        assert wrapper.guard.bad and wrapper.loss_scaler.get_scale() == 4.0
        compare(before, dict(model.named_parameters()))


def compare(one: object, other: object) -> None:
    """The same structure and the same bits."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            compare(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            compare(*pair)
    else:
        assert one == other


def test_no_image_is_lost_from_a_run_with_a_bad_one(tmp_path):
    """The batch statistics are those of the batches before."""
    runner = Runner(**arguments(tmp_path, train_dataloader=loader("x", spoilt=(6,))))
    runner.train()
    assert runner.message_hub.get_info("skipped_steps") == 1
    assert all(bool(torch.isfinite(v).all()) for v in runner.model.state_dict().values())
