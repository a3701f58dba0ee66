"""Extend mmengine's loops: seeded data, micro-batches and mixed precision of evaluation.

They have names of their own. `Runner` takes them where a config names mmengine's; mmengine's own
runner goes on taking mmengine's.
"""

import itertools
from collections.abc import Iterator
from inspect import isclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch.utils.data import DataLoader

from backbones.errors import InputError
from backbones.openmmlab.config.loading import inference_dtype
from backbones.openmmlab.mmengine_internals import update_losses
from backbones.openmmlab.precision import inference_autocast

from .micro_batches import AccumulationHook, step_by_micro_batches
from .seeded_data import EndlessBatches, PlacedBatchSampler, reading_seeded, with_placed_batches
from .skip_bad_images import SkipBadImagesHook


@LOOPS.register_module()
class SeededEpochLoop(EpochBasedTrainLoop):
    """Train by epochs as mmengine does; training may also start within an epoch.

    The batches before are skipped by their indices; no image of them is read. A DataLoader object
    has an order and draws of its own: it is used as it is, and its batches are read to skip them.
    """

    takes_micro_batches = True

    def __init__(self, runner, dataloader: DataLoader | dict, **kwargs):
        super().__init__(runner, _placed(runner, dataloader), **kwargs)
        self.dataloader = _seeded(runner, self.dataloader)

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for batch_idx, data_batch in enumerate(self._batches_from(done), done):
            self.run_iter(batch_idx, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        _run_iter(self.runner, idx, data_batch)
        self._iter += 1

    def _batches_from(self, done: int) -> Iterator:
        placed = self.dataloader.batch_sampler
        if not isinstance(placed, PlacedBatchSampler):
            return itertools.islice(self.dataloader, done, None)
        rest = iter(placed.batches)
        next(itertools.islice(rest, done, done), None)
        placed.begin(self._iter, rest)
        return iter(self.dataloader)


@LOOPS.register_module()
class SeededIterationLoop(IterBasedTrainLoop):
    """Train by iterations as mmengine does; batches already seen are skipped by their indices.

    mmengine's own reads the skipped images where a batch sampler of its own groups them. A
    DataLoader object is used as mmengine uses it.
    """

    takes_micro_batches = True

    def __init__(self, runner, dataloader: DataLoader | dict, **kwargs):
        super().__init__(runner, _placed(runner, dataloader), **kwargs)
        self.dataloader = _seeded(runner, self.dataloader)
        if isinstance(self.dataloader.batch_sampler, PlacedBatchSampler):
            self.dataloader_iterator = EndlessBatches(self.dataloader)

    def run_iter(self, data_batch: Any) -> None:
        _run_iter(self.runner, self._iter, data_batch)
        self._iter += 1


@LOOPS.register_module()
class AutocastValLoop(ValLoop):
    """Validate as mmengine does, with the model in the config's `inference_dtype`."""

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook("before_val_iter", batch_idx=idx, data_batch=data_batch)
        dtype = inference_dtype(self.runner.cfg)
        # mmengine's context is the outer one: without fp16 it turns mixed precision off.
        with autocast(enabled=self.fp16), inference_autocast(self.runner.model, dtype):
            outputs = self.runner.model.val_step(data_batch)
        outputs, self.val_loss = update_losses(outputs, self.val_loss)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            "after_val_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )


@LOOPS.register_module()
class AutocastTestLoop(TestLoop):
    """Test as mmengine does, with the model in the config's `inference_dtype`."""

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
        dtype = inference_dtype(self.runner.cfg)
        with autocast(enabled=self.fp16), inference_autocast(self.runner.model, dtype):
            outputs = self.runner.model.test_step(data_batch)
        outputs, self.test_loss = update_losses(outputs, self.test_loss)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            "after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )


# What `Runner` builds in place of mmengine's.
OURS: dict[Any, Any] = {
    EpochBasedTrainLoop: SeededEpochLoop,
    IterBasedTrainLoop: SeededIterationLoop,
    ValLoop: AutocastValLoop,
    TestLoop: AutocastTestLoop,
}


def our_loop(kind: str | type) -> type:
    """Return the class of a loop's `type`, ours in place of mmengine's."""
    known: Any = LOOPS.get(kind) if isinstance(kind, str) else kind
    return OURS.get(known, known)


def autocasting_loop(
    loop: BaseLoop | dict, ours: type, key: str, config: Config
) -> BaseLoop | dict:
    """Return a validation or test loop, or its config with our class in place of mmengine's.

    Raises:
        InputError: a loop of the user's own, which would ignore the config's `inference_dtype`.
    """
    if isinstance(loop, dict):
        loop = {**loop, "type": our_loop(loop.get("type", ours))}
    kind = loop["type"] if isinstance(loop, dict) else type(loop)
    casts = isclass(kind) and issubclass(kind, ours)
    if not casts and inference_dtype(config) != torch.float32:
        name = kind.__name__ if isclass(kind) else kind
        raise InputError(
            f"config key {key}.type: {name} ignores inference_dtype and computes in float32; "
            f"derive it from {ours.__module__}.{ours.__name__}, or remove inference_dtype",
            code="unsupported",
            where=f"{key}.type",
        )
    return loop


def _run_iter(runner, batch_idx: int, data_batch: Any) -> None:
    """Take one optimizer step, in micro-batches if the config accumulates gradients."""
    runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=data_batch)
    sizes = [hook.batch_size for hook in runner.hooks if isinstance(hook, AccumulationHook)]
    if sizes:
        step = runner.model.train_step
        outputs = step_by_micro_batches(step, sizes[0], data_batch, runner.optim_wrapper)
    else:
        outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
    runner.call_hook(
        "after_train_iter", batch_idx=batch_idx, data_batch=data_batch, outputs=outputs
    )


def _placed(runner, dataloader: DataLoader | dict) -> DataLoader | dict:
    if isinstance(dataloader, dict):
        return with_placed_batches(dataloader, runner.seed)
    runner.logger.info(
        "train_dataloader is a DataLoader object: order and augmentation are its own, so a resumed "
        "run does not repeat them bit for bit"
    )
    return dataloader


def _seeded(runner, loader: DataLoader) -> DataLoader:
    if not isinstance(loader.batch_sampler, PlacedBatchSampler):
        return loader
    skip = any(isinstance(hook, SkipBadImagesHook) for hook in runner.hooks)
    return reading_seeded(loader, skip)
