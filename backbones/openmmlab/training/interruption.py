"""Stop a run from outside: on Ctrl-C, and on the signals that schedulers send as a warning."""

import signal
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from backbones.errors import Preempted
from backbones.openmmlab.mmengine_internals import swap_averaged_weights

from .checkpointing import INTERRUPTED, point_to
from .ranks import all_gather_object, any_rank, unwrapped
from .step_guard import StepGuard, guard_steps

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@HOOKS.register_module()
class InterruptHook(Hook):
    """End the run after the current step, at the same step on all ranks, with a checkpoint.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (Slurm's `--signal=USR1@120`) ask for it; it is enough if
    one rank receives it. A second Ctrl-C stops at once. Of several ranks, one that is asked at the
    very end of a step takes one step more: the ranks tell each other once a step, together with
    whether it was finite.

    Raises:
        KeyboardInterrupt: after SIGINT.
        Preempted: after the others.
    """

    priority = "LOWEST"

    def __init__(self):
        self.asked: signal.Signals | None = None
        self._former: dict[int, Any] = {}

    def before_train(self, runner) -> None:
        self._guard: StepGuard = guard_steps(runner.optim_wrapper, unwrapped(runner.model))
        self._guard.asked_to_stop = lambda: self.asked is not None
        self._former = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def after_train(self, runner) -> None:
        # After a stop or an error they stay: torchrun's SIGTERM must not cut the last line off.
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if self.asked == number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        stop = self._guard.stop
        if stop is None or runner.world_size == 1:  # no optimizer asked in this iteration
            stop = any_rank(self.asked is not None)
        if stop:
            self._stop(runner, runner.iter + 1)

    def before_val(self, runner) -> None:
        # Ranks may have unequal shares, and all have to be asked equally often.
        self._common = min(all_gather_object(len(runner.val_dataloader)))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx < self._common and any_rank(self.asked is not None):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # its weights are in the model while it validates
                    swap_averaged_weights(hook)
            self._stop(runner, runner.iter)

    def _stop(self, runner, done: int) -> None:
        meta = dict(epoch=runner.epoch, iter=done)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta)
        path = Path(runner.work_dir) / INTERRUPTED
        asked = next(filter(None, all_gather_object(self.asked and self.asked.name)))
        line = ""
        if runner.rank == 0:
            point_to(path, runner.work_dir)
            line = f"stopped by {asked} at iteration {done}, saved {path}"
        raise KeyboardInterrupt(line) if asked == "SIGINT" else Preempted(line)
