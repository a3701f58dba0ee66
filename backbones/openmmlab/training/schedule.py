"""Trace what a config's schedules do over a run, by stepping them without training."""

from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.doctor.checks import check_data
from backbones.openmmlab.doctor.complexity import build_on_meta


@dataclass(frozen=True)
class Trace:
    """Hold the values that each iteration of a run trains with.

    Attributes:
        lr: learning rates (iterations, groups), of groups that differ in rate or weight decay.
        weight_decay: (iterations, groups).
        ema_decay: share of the average of the weights that stays (iterations,), 1 in iterations
            that leave it alone; None without such a hook.
    """

    lr: np.ndarray
    weight_decay: np.ndarray
    ema_decay: np.ndarray | None


def trace(config: Config, epoch_length: int) -> Trace:
    """Step a config's own schedulers and average through a whole run.

    Args:
        config: a validated config with a training part.
        epoch_length: iterations of an epoch in each process.

    Raises:
        InputError: the config does not train, or an epoch has no iteration.
    """
    if config.get("train_cfg") is None or config.get("optim_wrapper") is None:
        raise InputError(f"{config.filename}: needs both train_cfg and optim_wrapper")
    if epoch_length < 1:
        raise InputError("an epoch has no iteration: the data set is smaller than a batch")
    by_iterations = config.train_cfg.get("type") == "IterBasedTrainLoop"
    epochs = config.train_cfg.get("max_epochs", 1)
    iterations = config.train_cfg.max_iters if by_iterations else epochs * epoch_length
    optimizer = torch.optim.SGD(_groups(config))
    wrapper = OptimWrapper(
        optimizer, accumulative_counts=config.optim_wrapper.get("accumulative_counts", 1)
    )
    schedulers = []
    for schedule in config.get("param_scheduler") or []:
        end = epochs if schedule.get("by_epoch", True) else iterations
        schedulers.append(
            PARAM_SCHEDULERS.build(
                {"end": end, **schedule},
                default_args=dict(optimizer=wrapper, epoch_length=epoch_length),
            )
        )
    wrapper.step()  # schedulers warn when they are stepped before it
    average = _Average(config, wrapper, iterations, epochs)
    rates, decays, shares = [], [], []
    for iteration in range(iterations):
        rates.append([group["lr"] for group in optimizer.param_groups])
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
        shares.append(average.step(iteration, iteration // epoch_length))
        for scheduler in schedulers:
            last = (iteration + 1) % epoch_length == 0 and not by_iterations
            if last or not scheduler.by_epoch:
                scheduler.step()
    ema = np.array(shares) if average.hook else None
    return Trace(np.array(rates), np.array(decays), ema)


def iterations_per_epoch(config: Config, processes: int) -> int:
    """Return the iterations of an epoch of the config's training data in each of `processes`."""
    check_data(config, ("train",))
    loader = config.train_dataloader
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine")):
        images = len(DATASETS.build(deepcopy(loader.dataset)))
    batches = ceil(images / processes) / loader.batch_size  # the samplers fill up
    return int(batches) if loader.get("drop_last") else ceil(batches)


def _groups(config: Config) -> list[dict]:
    """Return the parameter groups without duplicates, each with one representative parameter."""
    plain = deepcopy(config.optim_wrapper)
    # The mixed-precision wrapper has the same groups and asks for a GPU.
    plain.type = "OptimWrapper"
    for key in ("dtype", "loss_scale", "use_fp64"):
        plain.pop(key, None)
    groups = build_optim_wrapper(build_on_meta(config), plain).optimizer.param_groups
    found = {(group["lr"], group.get("weight_decay", 0.0)) for group in groups}
    return [
        dict(params=[nn.Parameter(torch.zeros(1))], lr=lr, weight_decay=decay)
        for lr, decay in sorted(found)
    ]


class _Average:
    """Run the config's averaging hook on one weight that is 1 while its average is set to 0."""

    def __init__(self, config: Config, wrapper: OptimWrapper, iterations: int, epochs: int):
        hooks = config.get("custom_hooks") or []
        kinds: dict[Any, Any] = {
            hook["type"]: HOOKS.get(hook["type"]) for hook in hooks if "type" in hook
        }
        chosen = [hook for hook in hooks if issubclass(kinds.get(hook["type"], object), EMAHook)]
        self.hook = HOOKS.build(chosen[0]) if chosen else None
        if self.hook:
            model = nn.Linear(1, 1, bias=False)
            nn.init.ones_(model.weight)
            self.runner = SimpleNamespace(
                model=model,
                optim_wrapper=wrapper,
                max_iters=iterations,
                max_epochs=epochs,
                iter=0,
                epoch=0,
                _resume=False,
            )
            self.hook.before_run(self.runner)
            self.hook.before_train(self.runner)

    def step(self, iteration: int, epoch: int) -> float:
        if not self.hook:
            return 1.0
        self.runner.iter, self.runner.epoch = iteration, epoch
        weight = self.hook.ema_model.module.weight
        weight.data.zero_()
        self.hook.after_train_iter(self.runner, iteration)
        return 1.0 - float(weight.data)
