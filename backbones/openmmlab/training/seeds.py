"""Make random draws functions of the seed, the rank and the step.

So there is no generator state to save: a run that was killed and resumed draws what it would have
drawn, whatever happened before.
"""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

# First number of the entropy, so that no two kinds of draws share a stream.
STEP, VALIDATION, SAMPLE = range(3)
# Where the last validation is noted. Not `val...`, or mmengine would log it among the scores.
VALIDATED = "last_validated_iter"


def seed_draws(*entropy: int) -> None:
    """Seed Python, NumPy and torch, on the CPU and every GPU, with a mixture of these numbers."""
    words = np.random.SeedSequence(entropy).generate_state(8)
    random.seed(int.from_bytes(words[:4].tobytes(), "little"))
    np.random.seed(words[4:6])
    torch.manual_seed(int.from_bytes(words[6:].tobytes(), "little"))


@HOOKS.register_module()
class RepeatableStepHook(Hook):
    """Seed every step, of training and of validation, by its number; record the last validation."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        seed_draws(STEP, runner.seed, runner.rank, runner.iter)

    def before_val_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        seed_draws(VALIDATION, runner.seed, runner.rank, runner.iter, batch_idx)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        # Before the hook that saves the best checkpoint, which holds it.
        runner.message_hub.update_info(VALIDATED, runner.iter)
