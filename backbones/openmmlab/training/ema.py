"""Keep the exponential moving average (EMA) of the weights."""

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import HOOKS, MODELS
from torch import nn

from backbones.openmmlab.mmengine_internals import accumulative_counts, is_resuming

from .step_guard import each_wrapper


@MODELS.register_module()
class ForeachAverage(ExponentialMovingAverage):
    """Move mmengine's average of weights and buffers in few launches, not in one for each."""

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a model's weights, or count a step between two updates."""
        if not self.update_buffers or self.steps == 0 or self.steps % self.interval:
            super().update_parameters(model)
            return
        trained = model.state_dict()
        averaged = {k: x for k, x in self.avg_parameters.items() if x.is_floating_point()}
        towards = [trained[name].to(average.device) for name, average in averaged.items()]
        torch._foreach_lerp_(list(averaged.values()), towards, self.momentum)
        self.steps += 1


@HOOKS.register_module()
class WeightAverageHook(EMAHook):
    """Keep the exponential moving average of the weights as the official code does.

    mmengine's own starts at the weights after the first step and counts the iterations between two
    steps when gradients are accumulated; this one starts at the initial or loaded weights and moves
    once for each step of the optimizer, buffers included, as timm's `ModelEma`. Evaluation in
    training uses the average. A checkpoint holds it as its weights, and the trained ones under
    `ema_state_dict`.

    Args:
        decay: share of the average that stays at each step.
    """

    def __init__(self, decay: float = 0.9999):
        super().__init__("ForeachAverage", momentum=1 - decay, update_buffers=True)
        self.averaging = False
        self.resumed = False

    def before_run(self, runner) -> None:
        super().before_run(runner)
        self.averaging = self.resumed = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take the average from the checkpoint when training is resumed."""
        if is_resuming(runner) and "ema_state_dict" in checkpoint:
            super().after_load_checkpoint(runner, checkpoint)
            self.resumed = True
        elif is_resuming(runner):
            print_log("no EMA in the checkpoint: it starts from the weights", "current")

    def before_train(self, runner) -> None:
        # Weights are initialised and loaded after before_run, where mmengine takes its copy.
        super().before_train(runner)
        if not self.resumed:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
            # At 0 it would copy the weights; then it moves at every multiple of the interval.
            self.ema_model.steps.fill_(1)
        # Of several optimizers the one that steps most often.
        self.ema_model.interval = min(map(accumulative_counts, each_wrapper(runner.optim_wrapper)))
        self.averaging = True

    def _swap_ema_parameters(self) -> None:
        # What is evaluated without training is a checkpoint's weights, an average already.
        if self.averaging:
            super()._swap_ema_parameters()
