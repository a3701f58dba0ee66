"""Take optimizer steps in micro-batches, as `config.global_batch` sets up in a config."""

from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATA_SAMPLERS, HOOKS
from torch import Tensor
from torch.utils.data import Sampler

from backbones.errors import InputError

from .step_guard import micro_batches


@DATA_SAMPLERS.register_module()
class StepBatchSampler(Sampler):
    """Join the batches of another batch sampler into those of whole steps, in their order.

    A sampler that groups images by aspect ratio goes on grouping those that are computed together.

    Args:
        sampler: sampler of indices.
        batch_size: images of a whole step.
        batches: config of the other batch sampler.
        micro_batch_size: its batch size.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict, micro_batch_size: int):
        build = dict(sampler=sampler, batch_size=micro_batch_size)
        self.sampler = sampler
        self.batches = DATA_SAMPLERS.build(batches, default_args=build)
        self.batch_size = batch_size
        self.micro_batches = batch_size // micro_batch_size
        self.drop_last = getattr(self.batches, "drop_last", False)

    def __iter__(self) -> Iterator[list[int]]:
        step: list[list[int]] = []
        for batch in self.batches:
            step.append(batch)
            if len(step) == self.micro_batches:
                yield sum(step, [])
                step = []
        if step and not self.drop_last:
            yield sum(step, [])

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches), self.micro_batches)
        return whole + bool(rest and not self.drop_last)


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Make the training loop compute each optimizer step in micro-batches.

    Args:
        batch_size: images of a micro-batch; the last one of an epoch may have fewer.

    Raises:
        InputError: before training, with another loop or with several optimizers.
    """

    priority = "VERY_HIGH"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        if not getattr(loop, "takes_micro_batches", False):
            name = type(loop).__name__
            raise InputError(
                f"config key train_cfg.type: {name} processes all images of a step at once; derive "
                "it from a loop of backbones.openmmlab.training.loops, or set the batch size to "
                "what one rank computes at once",
                code="unsupported",
                where="train_cfg.type",
            )
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise InputError(
                "config key optim_wrapper: steps of several optimizers cannot be accumulated; set "
                "the batch size to what one rank computes at once",
                code="unsupported",
                where="optim_wrapper",
            )


def step_by_micro_batches(
    train_step, batch_size: int, data: dict, optim_wrapper: OptimWrapper
) -> dict[str, Tensor]:
    """Take one optimizer step on `data`, computed in micro-batches.

    Args:
        train_step: `train_step` of mmengine's model, bound to it.
        batch_size: images of a micro-batch.
        data: data of the whole step; every value is a list or a tensor with one entry per image.
        optim_wrapper: guarded (`step_guard`), which counts the micro-batches.

    Returns:
        What is logged, the mean over the micro-batches.
    """
    parts = list(_split(data, batch_size))
    with micro_batches(optim_wrapper, len(parts)):
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
