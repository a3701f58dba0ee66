"""Take optimizer steps only if the loss and all gradients are finite on all ranks."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import cast

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .ranks import any_rank_each


class StepGuard:
    """Hold what the guarded wrappers of a run share with its hooks.

    All ranks learn in one message whether a loss or gradient is not finite and whether one of them
    was asked to stop.

    Attributes:
        bad: a loss or gradient of this iteration is not finite on some rank.
        gradient: name of this rank's first gradient that is not finite, if any.
        stop: some rank was asked to stop; None until the ranks have exchanged it in this iteration.
        asked_to_stop: tells whether this rank was.
        same_gradients: all ranks have the same gradients, as under DDP, so that they need to
            exchange nothing about them and do so while a GPU still computes them.
    """

    bad = False
    gradient: str | None = None
    stop: bool | None = None
    asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)
    same_gradients = False

    def begin_iteration(self) -> None:
        """Reset the state of the previous iteration."""
        self.bad, self.gradient, self.stop = False, None, None

    def exchange(self, bad: bool, overflowed: bool = False) -> tuple[bool, bool]:
        """Return what holds on some rank; each calls it at the same point, once in an iteration.

        Args:
            bad: a loss or gradient of this rank is not finite.
            overflowed: a gradient is not.
        """
        bad, overflowed, stop = any_rank_each([bad, overflowed, self.asked_to_stop()])
        self.stop = stop or bool(self.stop)
        return bad, overflowed


class GuardedStep(OptimWrapper):
    """Skip steps that are not finite; mixed into the class of an optimizer wrapper.

    A skipped step changes neither weights nor the optimizer's state; a dynamic loss scale falls, as
    always. Micro-batches are counted here, as mmengine's own counts go on over iterations.
    """

    guard: StepGuard
    _names: dict[int, str]  # of the optimizer's parameters in the model
    _micro_batches = 0  # of the step under way; 0 where the iteration is not divided
    _done = 0
    _bad_loss: Tensor | None = None  # of the micro-batches before, left on the device
    _poisoned = False
    _overflowed = False

    @contextmanager
    def micro_batches(self, count: int) -> Iterator[None]:
        """Use the next `count` backward passes for one step, whose loss is their mean."""
        self._micro_batches, self._done = count, 0
        try:
            yield
        finally:
            self._micro_batches = 0

    def should_update(self) -> bool:
        if self._micro_batches:
            return self._done == self._micro_batches
        return super().should_update()

    def should_sync(self) -> bool:
        if self._micro_batches:
            return self._done + 1 == self._micro_batches
        return super().should_sync()

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss / self._micro_batches if self._micro_batches else super().scale_loss(loss)

    def backward(self, loss: Tensor, **kwargs) -> None:
        bad = ~torch.isfinite(loss.detach())
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        asks = not self._micro_batches or self._done + 1 == self._micro_batches
        early = _HostCopy(self._bad_loss) if asks and self.guard.same_gradients else None
        super().backward(loss, **kwargs)
        self._done += 1
        if asks:
            self._ask_ranks(early)

    def step(self, **kwargs) -> None:
        scaler = getattr(self, "loss_scaler", None)
        # The scaler leaves the step out itself, and lowers its scale.
        if not self._poisoned or (self._overflowed and scaler and scaler.is_enabled()):
            super().step(**kwargs)
        self._poisoned = self._overflowed = False

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state whether or not it and this wrapper have a loss scaler."""
        if not hasattr(self, "loss_scaler") or not state_dict.get("loss_scaler"):
            state_dict = {k: v for k, v in state_dict.items() if k != "loss_scaler"}
        super().load_state_dict(state_dict)

    def _ask_ranks(self, early: "_HostCopy | None") -> None:
        assert self._bad_loss is not None
        gradients = self._gradients() if self.should_update() else {}
        found = [self._bad_loss]
        if gradients:
            # One number for all, and one transfer with the loss, so that a GPU is waited for once.
            largest = nn.utils.get_total_norm(list(gradients.values()), norm_type=math.inf)
            found.append(~torch.isfinite(largest).to(self._bad_loss.device))
        self._bad_loss = None
        # The GPU has computed the loss, and the gradients are queued, while the ranks talk.
        told = None if early is None else self.guard.exchange(early.read())[0]
        bad_loss, *bad_gradient = torch.stack(found).tolist()
        overflowed = any(bad_gradient)
        if overflowed:
            first = next(name for name, g in gradients.items() if not torch.isfinite(g).all())
            self.guard.gradient = first
        if told is None:
            # Under FSDP the gradient that overflowed may be another rank's.
            bad, overflowed = self.guard.exchange(bad_loss or overflowed, overflowed)
        else:
            bad = told or overflowed
        self.guard.bad |= bad
        self._poisoned |= bad
        self._overflowed |= overflowed

    def _gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients: under FSDP, of sums over all ranks."""
        found = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and (gradient := local(gradient)).numel():
                    found[self._names.get(id(parameter), "a parameter")] = gradient
        return found


class _HostCopy:
    """Copy a number of a device to the host as soon as it is computed, ahead of later work."""

    def __init__(self, value: Tensor):
        self._value, self._copied = value, None
        if value.is_cuda:
            host = torch.empty_like(value, device="cpu", pin_memory=True)
            self._value = host.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._value)


def guard_steps(optim_wrapper: OptimWrapper, model: nn.Module) -> StepGuard:
    """Guard the steps of an optimizer wrapper, or of each in an `OptimWrapperDict`.

    The object stays the same and becomes one of a subclass of its own class. One that is guarded
    already stays as it is.

    Args:
        optim_wrapper: changed in place.
        model: the model whose parameters it trains, without its wrapper.

    Returns:
        What the wrappers share.
    """
    wrappers = each_wrapper(optim_wrapper)
    guarded = [wrapper for wrapper in wrappers if isinstance(wrapper, GuardedStep)]
    guard = guarded[0].guard if guarded else StepGuard()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for wrapper in wrappers:
        if not isinstance(wrapper, GuardedStep):
            vars(wrapper).pop("step", None)  # where schedulers built before have wrapped it
            wrapper.__class__ = _guarded(type(wrapper))
            changed = cast(GuardedStep, wrapper)
            changed.guard, changed._names = guard, names
    return guard


def each_wrapper(optim_wrapper: OptimWrapper) -> list[OptimWrapper]:
    """Return the wrappers of an `OptimWrapperDict`, or the single wrapper."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return list(optim_wrapper.values())
    return [optim_wrapper]


@contextmanager
def micro_batches(optim_wrapper: OptimWrapper, count: int) -> Iterator[None]:
    """Use the next `count` backward passes of each guarded wrapper for one step."""
    with ExitStack() as stack:
        for wrapper in each_wrapper(optim_wrapper):
            assert isinstance(wrapper, GuardedStep)
            stack.enter_context(wrapper.micro_batches(count))
        yield


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@cache
def _guarded(kind: type[OptimWrapper]) -> type[GuardedStep]:
    return type(f"Guarded{kind.__name__}", (GuardedStep, kind), {})
