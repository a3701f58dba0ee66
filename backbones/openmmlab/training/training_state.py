"""Save and restore training so that it continues after a kill exactly as without one.

Random draws and data depend on the seed, the rank and the step alone (`seeds`, `seeded_data`). The
rest of the state is in the checkpoint.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.openmmlab.mmengine_internals import decide_val_interval, set_iteration

from .ranks import all_gather_object, unwrapped
from .seeds import VALIDATED
from .skip_bad_images import SkipBadImagesHook


@HOOKS.register_module()
class DueValidationHook(Hook):
    """Validate first if the checkpoint resumed from was due for validation and not validated."""

    priority = "LOWEST"

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        if runner.val_loop is None or runner.iter == 0:
            return
        if not isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            return
        if runner.message_hub.get_info(VALIDATED) == runner.iter:
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        at, last = (runner.epoch, loop.max_epochs) if by_epoch else (runner.iter, loop.max_iters)
        if by_epoch and (at == 0 or runner.iter != at * len(loop.dataloader)):
            return  # in the middle of an epoch
        decide_val_interval(loop)
        if at >= loop.val_begin and (at % loop.val_interval == 0 or at == last):
            runner.logger.info("the checkpoint was saved before its validation, which comes first")
            # As they were then; mmengine has set them for the step that comes next.
            runner.message_hub.update_info("iter", runner.iter - 1)
            runner.message_hub.update_info("epoch", runner.epoch - by_epoch)
            runner.val_loop.run()


def check_resumable(path: str | Path, checkpoint: Mapping) -> None:
    """Raise an error unless the checkpoint holds the state of a run.

    Raises:
        InputError: it holds weights alone.
    """
    meta = checkpoint.get("meta")
    counted = isinstance(meta, Mapping) and all(
        isinstance(meta.get(key), int) for key in ("epoch", "iter")
    )
    if not counted or not all(
        isinstance(checkpoint.get(key), Mapping) for key in ("optimizer", "message_hub")
    ):
        raise InputError(
            f"{path}: holds weights, not the state of a run; --resume continues from a run's own "
            "checkpoints, --init-from starts from any",
            code="checkpoint-mismatch",
            where=path,
        )


class TrainingState:
    """Collect what a checkpoint holds beyond mmengine's own content.

    These are the number of ranks, the buffers of each (batch statistics differ where nothing
    synchronizes them), the gradients of an accumulation under way, the patience of early stopping
    and the images that could not be read.

    Args:
        runner: the runner whose state to collect or to restore.
    """

    def __init__(self, runner):
        self.runner = runner

    def collect(self) -> dict:
        """Return the state of all ranks; every rank calls it at the same point."""
        loop = self.runner.train_loop
        state: dict[str, Any] = dict(
            world_size=get_world_size(),
            epoch_length=_length(loop.dataloader),
            processes=all_gather_object(self._of_this_rank()),
        )
        for hook in self._hooks(EarlyStoppingHook):
            state["early_stopping"] = (hook.wait_count, float(hook.best_score), loop.stop_training)
        for hook in self._hooks(SkipBadImagesHook):
            hook.write(self.runner)
            state["unreadable_images"] = sorted(hook.found)
        return state

    def restore(self, state: dict | None) -> None:
        """Restore this rank's state; log one line if that cannot be exact."""
        runner, loop = self.runner, self.runner.train_loop
        if state is None:
            runner.logger.warning("another program wrote the checkpoint: not resumed bit for bit")
            return
        for hook in self._hooks(EarlyStoppingHook):
            if "early_stopping" in state:
                hook.wait_count, hook.best_score, loop.stop_training = state["early_stopping"]
        for hook in self._hooks(SkipBadImagesHook):
            hook.found = set(state.get("unreadable_images", ()))
        before, length = state["epoch_length"], _length(loop.dataloader)
        if isinstance(loop, EpochBasedTrainLoop) and length is not None and length != before:
            done = loop.iter - loop.epoch * before
            set_iteration(loop, loop.epoch * length + done * length // before)
        position = f"continues at epoch {runner.epoch}, iteration {runner.iter}, not bit for bit"
        if state["world_size"] != get_world_size():
            runner.logger.warning(
                f"saved on {state['world_size']} ranks, resumed on {get_world_size()}: {position}"
            )
            return
        if length != before:
            runner.logger.warning(f"an epoch had {before} batches and has {length}: {position}")
            return
        mine = state["processes"][get_rank()]
        own = dict(self._buffers())
        for name, value in mine["buffers"].items():
            own[name].copy_(value)
        for name, value in mine["gradients"].items():
            parameter = self._model.get_parameter(name)
            parameter.grad = value.to(parameter.device, parameter.dtype)

    def _of_this_rank(self) -> dict:
        wrapper = self.runner.optim_wrapper
        # Of several optimizers the model decides when to step, and mmengine keeps no counts.
        several_optimizers = isinstance(wrapper, OptimWrapperDict)
        under_way = not several_optimizers and not wrapper.should_update()
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in self._model.named_parameters()
            if under_way and parameter.grad is not None
        }
        buffers = self._buffers() if get_world_size() > 1 else ()
        return dict(buffers={name: b.cpu() for name, b in buffers}, gradients=gradients)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        models = {"": self._model}
        models |= {f"ema{i}.": hook.ema_model for i, hook in enumerate(self._hooks(EMAHook))}
        for prefix, model in models.items():
            saved = model.state_dict()
            for name, value in model.named_buffers():
                if name in saved and value.is_floating_point():
                    yield prefix + name, value

    @cached_property
    def _model(self) -> nn.Module:
        return unwrapped(self.runner.model)

    def _hooks(self, kind: type[Hook]) -> list:
        return [hook for hook in self.runner.hooks if isinstance(hook, kind)]


def _length(loader: object) -> int | None:
    try:
        return len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:  # of an iterable data set
        return None
