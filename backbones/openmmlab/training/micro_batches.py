"""Optimizer steps over micro-batches: the sampler, the hook and the step that carry out what
`config.global_batch` writes into a config.
"""

from collections.abc import Iterator
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS
from torch import Tensor
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class StepBatchSampler(Sampler):
    """Joins batches of another batch sampler into those of whole steps, in their order.

    A sampler that groups images by aspect ratio goes on grouping those that are computed together.

    Args:
        sampler: of indices.
        batch_size: images of a whole step.
        batches: config of the other batch sampler.
        micro_batch_size: its batch size.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict, micro_batch_size: int):
        build = dict(sampler=sampler, batch_size=micro_batch_size)
        self.sampler = sampler
        self.batches = DATA_SAMPLERS.build(batches, default_args=build)
        self.batch_size = batch_size
        self.parts = batch_size // micro_batch_size
        self.drop_last = getattr(self.batches, "drop_last", False)

    def __iter__(self) -> Iterator[list[int]]:
        step: list[list[int]] = []
        for batch in self.batches:
            step.append(batch)
            if len(step) == self.parts:
                yield sum(step, [])
                step = []
        if step and not self.drop_last:
            yield sum(step, [])

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches), self.parts)
        return whole + bool(rest and not self.drop_last)


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Takes the training step in parts and updates the weights after the last of them.

    Args:
        batch_size: images of a part; the last part of an epoch may have fewer.
    """

    priority = "VERY_HIGH"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def before_train(self, runner) -> None:
        step = runner.model.train_step
        runner.model.train_step = partial(step_by_micro_batches, step, self.batch_size)

    def after_train(self, runner) -> None:
        del runner.model.train_step  # the class's own again


def step_by_micro_batches(
    train_step, batch_size: int, data: dict, optim_wrapper: OptimWrapper
) -> dict[str, Tensor]:
    """One optimizer step on `data`, computed in parts of `batch_size` images.

    Args:
        train_step: of mmengine's model, bound to it.
        batch_size: images of a part.
        data: of the whole step; every value is a list or a tensor with one entry an image.
        optim_wrapper: has made a whole number of steps.

    Returns:
        What is logged, the mean over the parts.
    """
    parts = list(_split(data, batch_size))
    # The wrapper updates, synchronises and divides the loss by these; its own way to set them
    # counts from the start of the run.
    optim_wrapper._accumulative_counts = len(parts)
    optim_wrapper._inner_count, optim_wrapper._max_counts = 0, -1
    logged = [train_step(part, optim_wrapper=optim_wrapper) for part in parts]
    return {
        name: torch.stack([torch.as_tensor(each[name]) for each in logged]).float().mean()
        for name in logged[-1]
    }


def _split(data: dict, batch_size: int) -> Iterator[dict]:
    images = {len(value) for value in data.values()}
    if len(images) != 1:
        raise ValueError(f"values of a batch have different lengths: {sorted(images)}")
    for start in range(0, images.pop(), batch_size):
        yield {name: value[start : start + batch_size] for name, value in data.items()}
