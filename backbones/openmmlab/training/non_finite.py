"""Losses and gradients that are not finite: such a step changes nothing, and many end the run."""

import math
from collections.abc import Iterator
from functools import wraps

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor, nn

from backbones.errors import InputError

from .processes import any_process, from_all
from .resume import STEP, seed_draws
from .sharding import local


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Skips a step whose loss or gradient is not finite in any process, and counts it.

    Neither the weights, the optimizer's state nor the batch statistics are changed by it; a dynamic
    loss scale falls, as always. After `limit` such steps in a row the run stops.

    Args:
        limit: skipped steps in a row that end the run. A new loss scale of 65536 may need 16 to
            find its range, which says nothing against the model.

    Raises:
        InputError: names the images, the loss terms and the first module whose output is not
            finite. Nothing is saved.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, limit: int = 20):
        if limit < 1:
            raise InputError(f"NonFiniteHook: limit={limit} has to be 1 at least")
        self.limit = limit

    def before_train(self, runner) -> None:
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # A batch norm has taken the bad batch in before anything is known.
        self._buffers = [b for b in self._model.buffers() if b.is_floating_point()]
        self._kept = [torch.empty_like(b) for b in self._buffers]
        self._poisoned = False
        wrapper = runner.optim_wrapper
        for each in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            self._guard(each)

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        self._bad, self._gradient, self._overflowed = False, None, False
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        hub = runner.message_hub
        if not self._bad:
            hub.update_info("skipped_in_a_row", 0)
            return
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.data.copy_(kept)
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
            raise InputError(self._diagnosis(runner, data_batch, terms, in_a_row))

    def _guard(self, wrapper: OptimWrapper) -> None:
        """Let the optimizer step only where the loss and all gradients are finite everywhere."""
        backward, step = wrapper.backward, wrapper.step

        def checked_backward(loss: Tensor, **kwargs) -> None:
            backward(loss, **kwargs)
            if wrapper.should_update():
                self._gradient = _first_non_finite_gradient(self._model)
            bad = any_process(self._gradient is not None or not math.isfinite(loss.item()))
            self._bad |= bad
            self._poisoned |= bad
            if bad:  # under FSDP the gradient that overflowed may be another process's
                self._overflowed = any_process(self._gradient is not None)

        @wraps(step)  # with the mark that mmengine's schedulers leave on it
        def checked_step(**kwargs) -> None:
            scaled = getattr(wrapper, "loss_scaler", None)
            # The scaler leaves the step out itself, and lowers its scale.
            if not self._poisoned or (self._overflowed and scaled and scaled.is_enabled()):
                step(**kwargs)
            self._poisoned = False

        wrapper.backward, wrapper.step = checked_backward, checked_step

    def _diagnosis(self, runner, data_batch: object, terms: str, in_a_row: int) -> str:
        """The same line in every process, of the first one that has found something."""
        module = _first_non_finite_module(runner, self._model, data_batch)
        mine = None
        if module or "nan" in terms or "inf" in terms:
            images = ", ".join(_images(data_batch))
            where = f" of process {runner.rank}" if runner.world_size > 1 else ""
            mine = f"images{where}: {images}; losses: {terms}; first output not finite: " + (
                module or f"none, but the gradient of {self._gradient}"
            )
        found = next(filter(None, from_all(mine)), f"gradient of {self._gradient}")
        return (
            f"stopped at iteration {runner.iter + 1}: {in_a_row} steps in a row not finite and not "
            f"applied; {found}; the last checkpoint was not overwritten; look at these images "
            "or lower the learning rate, then continue with --resume"
        )


def check_finite(state: dict[str, Tensor], path: object) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        InputError: names the first such tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: not saved, {name} is not finite; the earlier checkpoints are as they were"
            )


def _first_non_finite_gradient(model: nn.Module) -> str | None:
    """Of what this process has of the gradients: under FSDP, of the sums over all processes."""
    named = [(n, local(p.grad)) for n, p in model.named_parameters() if p.grad is not None]
    named = [(name, gradient) for name, gradient in named if gradient.numel()]
    if not named:
        return None
    # One number for all, so that a GPU is waited for once.
    largest = nn.utils.get_total_norm([gradient for _, gradient in named], norm_type=math.inf)
    if math.isfinite(largest):
        return None
    return next(n for n, gradient in named if not bool(torch.isfinite(gradient).all()))


def _first_non_finite_module(runner, model: nn.Module, data_batch: object) -> str | None:
    """Run the step's forward pass again, with the same draws, and watch every module's output."""
    found: list[str] = []

    def watch(name: str):
        def hook(_, inputs: tuple, output: object) -> None:
            if not found and not all(_finite(tensor) for tensor in _tensors(output)):
                given = all(_finite(tensor) for tensor in _tensors(inputs))
                found.append(f"{name}{'' if given else ', whose input is not finite either'}")

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    seed_draws(STEP, runner.seed, runner.rank, runner.iter)
    try:
        # To the end in every process: synchronised norms and losses wait for one another.
        with torch.no_grad(), runner.optim_wrapper.optim_context(model):
            model._run_forward(model.data_preprocessor(data_batch, True), mode="loss")
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
