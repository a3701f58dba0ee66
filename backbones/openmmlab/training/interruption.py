"""Stopping a run from outside: Ctrl-C, and the signals with which schedulers warn."""

import signal
from pathlib import Path

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from backbones.errors import Preempted

from .checkpointing import INTERRUPTED, point_to
from .processes import any_process, from_all

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ends the run after the current step, in all processes alike, with a checkpoint of it.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (Slurm's `--signal=USR1@120`) ask for it; it is enough if
    one process hears. A second Ctrl-C stops at once.

    Raises:
        KeyboardInterrupt: after SIGINT.
        Preempted: after the others.
    """

    priority = "LOWEST"

    def __init__(self):
        self.asked: signal.Signals | None = None
        self._former: dict[int, object] = {}

    def before_train(self, runner) -> None:
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
        if any_process(self.asked is not None):
            self._stop(runner, runner.iter + 1)

    def before_val(self, runner) -> None:
        # Processes may have unequal shares, and all have to be asked equally often.
        self._common = min(from_all(len(runner.val_dataloader)))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx < self._common and any_process(self.asked is not None):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # its weights are in the model while it validates
                    hook._swap_ema_parameters()
            self._stop(runner, runner.iter)

    def _stop(self, runner, done: int) -> None:
        meta = dict(epoch=runner.epoch, iter=done)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta)
        path = Path(runner.work_dir) / INTERRUPTED
        asked = next(filter(None, from_all(self.asked and self.asked.name)))
        line = ""
        if runner.rank == 0:
            point_to(path, runner.work_dir)
            line = f"stopped by {asked} at iteration {done}, saved {path}"
        raise KeyboardInterrupt(line) if asked == "SIGINT" else Preempted(line)
