"""Detect non-finite losses, gradients and weights: skip or stop, and locate their origin."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from backbones.errors import InputError
from backbones.openmmlab.mmengine_internals import forward_losses

from .ranks import all_gather_object, unwrapped
from .seeds import STEP, seed_draws
from .step_guard import each_wrapper, guard_steps


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Count the steps that were skipped because a loss or gradient is not finite on some rank.

    Such a step changes neither the weights and the optimizer's state (`step_guard`) nor, by this
    hook, the batch statistics. After `limit` such steps in a row the run stops.

    Args:
        limit: skipped steps in a row that end the run. A new loss scale of 65536 may need 16 to
            find its range, which is no fault of the model.

    Raises:
        InputError: names the images, the loss terms and the first module whose output is not
            finite. Nothing is saved.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, limit: int = 20):
        if limit < 1:
            raise InputError(
                f"NonFiniteHook: limit={limit} is less than 1", code="bad-value", where="limit"
            )
        self.limit = limit

    def before_train(self, runner) -> None:
        self._model = unwrapped(runner.model)
        self._guard = guard_steps(runner.optim_wrapper, self._model)
        self._guard.same_gradients = isinstance(runner.model, DistributedDataParallel)
        # A batch norm has taken the bad batch in before anything is known.
        self._buffers = [b for b in self._model.buffers() if b.is_floating_point()]
        self._kept = [torch.empty_like(b) for b in self._buffers]

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        self._guard.begin_iteration()
        if self._kept:  # PyTorch refuses an empty list
            torch._foreach_copy_(self._kept, self._buffers)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        hub = runner.message_hub
        if not self._guard.bad:
            hub.update_info("skipped_in_a_row", 0)
            return
        if self._kept:
            torch._foreach_copy_([buffer.data for buffer in self._buffers], self._kept)
        skipped = hub.get_info("skipped_steps", 0) + 1
        in_a_row = hub.get_info("skipped_in_a_row", 0) + 1
        hub.update_info("skipped_steps", skipped)
        hub.update_info("skipped_in_a_row", in_a_row)
        hub.update_scalar("train/skipped_steps", skipped)
        terms = _terms(outputs or {})
        runner.logger.warning(
            f"step {runner.iter + 1} skipped, its loss or gradient is not finite: {terms} "
            f"({skipped} skipped so far, {in_a_row} in a row)"
        )
        if in_a_row >= self.limit:
            raise InputError(
                self._diagnosis(runner, data_batch, terms, in_a_row),
                code="not-finite",
                where=f"iteration {runner.iter + 1}",
            )

    def _diagnosis(self, runner, data_batch: object, terms: str, in_a_row: int) -> str:
        """Return the same line on every rank: that of the first rank that has found something."""
        module = _first_non_finite_module(runner, self._model, data_batch)
        gradient = f"the gradient of {self._guard.gradient}"
        mine = None
        if module or "nan" in terms or "inf" in terms:
            images = ", ".join(_images(data_batch))
            where = f" of rank {runner.rank}" if runner.world_size > 1 else ""
            mine = (
                f"images{where}: {images}; losses: {terms}; first output not finite: "
                f"{module or f'none, but {gradient}'}"
            )
        found = next(filter(None, all_gather_object(mine)), gradient)
        return (
            f"stopped at iteration {runner.iter + 1}: {in_a_row} consecutive steps were not finite "
            f"and not applied; {found}; the last checkpoint was not overwritten; check these "
            "images or lower the learning rate, then continue with --resume"
        )


def check_finite(state: Mapping[str, Tensor], path: object) -> None:
    """Raise an error before non-finite weights are saved.

    Raises:
        InputError: names the first such tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: not saved, {name} is not finite; earlier checkpoints are kept",
                code="not-finite",
                where=name,
            )


def _first_non_finite_module(runner, model: Any, data_batch: object) -> str | None:
    """Run the step's forward pass again, with the same draws, and watch every module's output."""
    found: list[str] = []

    def watch(name: str):
        def hook(module: object, inputs: tuple, output: object) -> None:
            if not found and not all(_finite(tensor) for tensor in _tensors(output)):
                given = all(_finite(tensor) for tensor in _tensors(inputs))
                found.append(f"{name}{'' if given else ', whose input is not finite either'}")

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    seed_draws(STEP, runner.seed, runner.rank, runner.iter)
    try:
        # To the end on every rank: synchronized norms and losses wait for one another.
        with torch.no_grad(), each_wrapper(runner.optim_wrapper)[0].optim_context(model):
            forward_losses(model, data_batch)
    except (RuntimeError, ValueError, AssertionError):
        pass  # what follows a value that is not finite may well fail
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _images(data_batch: object) -> list[str]:
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    return [str(sample.get("img_path", "?")) for sample in samples]


def _terms(outputs: dict[str, Tensor]) -> str:
    losses = {name: float(value) for name, value in outputs.items() if "loss" in name}
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
