"""Training that goes on after a kill exactly as if there had been none.

Every random draw of a training step is a function of the seed, the process and the step, and every
draw of an augmentation one of the seed, the process and the sample's place in the order of samples.
So there is no generator state to save, and it makes no difference how many data workers there are,
how far they had read ahead or what they read before. The rest of the state is in the checkpoint.
"""

import itertools
import multiprocessing
import random
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, UnreadableImage

from .processes import from_all

# First number of the entropy, so that no two kinds of draws share a stream.
STEP, VALIDATION, SAMPLE = range(3)
TRIES = 100
# Not `val...`, or mmengine would log it among the scores.
VALIDATED = "last_validated_iter"


def seed_draws(*entropy: int) -> None:
    """Seed Python, NumPy and torch, on the CPU and every GPU, with a mixture of these numbers."""
    words = np.random.SeedSequence(entropy).generate_state(8)
    random.seed(int.from_bytes(words[:4].tobytes(), "little"))
    np.random.seed(words[4:6])
    torch.manual_seed(int.from_bytes(words[6:].tobytes(), "little"))


class Placed(NamedTuple):
    """Index of a sample in the data set, and what its draws are seeded with."""

    index: int
    entropy: tuple[int, ...]


@DATA_SAMPLERS.register_module()
class PlacedBatchSampler(Sampler):
    """Batches of another batch sampler, from any batch on, each sample with its place.

    Args:
        sampler: of indices.
        batch_size: samples a batch.
        batches: config of a batch sampler; None for PyTorch's BatchSampler.
        drop_last: leave an incomplete last batch out; for PyTorch's BatchSampler.
        seed: of the run.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batches: dict | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ):
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        if batches is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            build = dict(sampler=sampler, batch_size=batch_size)
            self.batches = DATA_SAMPLERS.build(batches, default_args=build)
        self._next = 0
        self._rest: Iterator[list[int]] | None = None

    def begin(self, iteration: int, rest: Iterator[list[int]] | None = None) -> None:
        """Let the next pass begin at this training iteration, with these batches if any."""
        self._next, self._rest = iteration, rest

    def __iter__(self) -> Iterator[list[Placed]]:
        batches = iter(self.batches) if self._rest is None else self._rest
        self._rest = None
        rank = get_rank()
        for iteration, batch in enumerate(batches, self._next):
            yield [
                Placed(index, (SAMPLE, self.seed, rank, iteration, place))
                for place, index in enumerate(batch)
            ]

    def __len__(self) -> int:
        return len(self.batches)


class SeededReader:
    """Reads samples with draws that depend on their place alone.

    PyTorch's loader reads a batch through a data set's `__getitems__`, which this stands for.

    Args:
        dataset: of OpenMMLab: it gives one sample for one index.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.unreadable: Any = None  # a queue: unreadable images go there and others are read

    def __call__(self, batch: list[Placed]) -> list:
        return [self._read(*placed) for placed in batch]

    def _read(self, index: int, entropy: tuple[int, ...]) -> object:
        seed_draws(*entropy)
        for _ in range(TRIES):
            try:
                return self._sample(index)
            except UnreadableImage as error:
                if self.unreadable is None:
                    raise
                self.unreadable.put(str(error))
                index = int(np.random.randint(len(self.dataset)))
        raise InputError(f"{TRIES} images drawn in a row cannot be read, the last one: {index}")

    def _sample(self, index: int) -> object:
        try:
            return self.dataset[index]
        except OSError as error:  # PIL does not name the label map
            if error.filename or not hasattr(self.dataset, "get_data_info"):
                raise
            info = self.dataset.get_data_info(index)
            path = info.get("seg_map_path") or info["img_path"]
            raise UnreadableImage(f"{path}: empty, cut off or not an image ({error})") from None


def _placed(dataloader: dict, seed: int) -> dict:
    """The config of a data loader, with batches that can begin anywhere."""
    dataloader = dict(dataloader)
    batches = dict(type="PlacedBatchSampler", batches=dataloader.get("batch_sampler"), seed=seed)
    if batches["batches"] is None:
        batches["drop_last"] = dataloader.pop("drop_last", False)
    return {**dataloader, "batch_sampler": batches}


def _read_seeded(loader: DataLoader) -> None:
    loader.dataset.__getitems__ = SeededReader(loader.dataset)


@LOOPS.register_module(name="EpochBasedTrainLoop", force=True)
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which also begins in the middle of one.

    The batches before are skipped by their indices; no image of them is read.
    """

    def __init__(self, runner, dataloader: dict, **kwargs):
        super().__init__(runner, _placed(dataloader, runner.seed), **kwargs)
        _read_seeded(self.dataloader)

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        placed = self.dataloader.batch_sampler
        rest = iter(placed.batches)
        next(itertools.islice(rest, done, done), None)
        placed.begin(self._iter, rest)
        for batch_idx, data_batch in enumerate(self.dataloader, done):
            self.run_iter(batch_idx, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


@LOOPS.register_module(name="IterBasedTrainLoop", force=True)
class IterationLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, which skips what was trained on by its indices.

    mmengine's own loads the skipped images where a batch sampler of its own groups them.
    """

    def __init__(self, runner, dataloader: dict, **kwargs):
        super().__init__(runner, _placed(dataloader, runner.seed), **kwargs)
        _read_seeded(self.dataloader)
        self.dataloader_iterator = EndlessBatches(self.dataloader)


class EndlessBatches:
    """The batches of a loader, pass after pass; any number of them can be skipped at the start."""

    def __init__(self, loader: DataLoader):
        self._loader = loader
        self._iteration = 0
        self._passes = 0
        self._batches: Iterator | None = None

    def __iter__(self) -> Iterator:
        return self

    def skip_iter(self, count: int) -> None:
        """Go on as if `count` batches had been taken; no image of them is read."""
        placed = self._loader.batch_sampler
        left = count
        while True:
            rest = iter(placed.batches)
            taken = sum(1 for _ in itertools.islice(rest, left))
            left -= taken
            if left == 0 or taken == 0:
                break
            self._next_pass()
        self._iteration = count
        placed.begin(count, rest)
        self._batches = iter(self._loader)

    def __next__(self) -> object:
        if self._batches is None:
            self._begin()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._next_pass()
            self._begin()
            batch = next(self._batches)
        self._iteration += 1
        return batch

    def _begin(self) -> None:
        self._loader.batch_sampler.begin(self._iteration)
        self._batches = iter(self._loader)

    def _next_pass(self) -> None:
        self._passes += 1
        sampler = self._loader.batch_sampler.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._passes)


@HOOKS.register_module()
class RepeatableStepHook(Hook):
    """Seeds every step by its number, and notes the last validation."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        seed_draws(STEP, runner.seed, runner.rank, runner.iter)

    def before_val_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        seed_draws(VALIDATION, runner.seed, runner.rank, runner.iter, batch_idx)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.message_hub.update_info(VALIDATED, runner.iter)


@HOOKS.register_module()
class DueValidationHook(Hook):
    """Validates first where the checkpoint resumed from was due to be, and was not."""

    priority = "LOWEST"

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        if runner.val_loop is None or runner.iter == 0:
            return
        if runner.message_hub.get_info(VALIDATED) == runner.iter:
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        at, last = (runner.epoch, loop.max_epochs) if by_epoch else (runner.iter, loop.max_iters)
        if by_epoch and (at == 0 or runner.iter != at * len(loop.dataloader)):
            return  # in the middle of an epoch
        loop._decide_current_val_interval()
        if at >= loop.val_begin and (at % loop.val_interval == 0 or at == last):
            runner.logger.info("the checkpoint was saved before its validation, which comes first")
            # As they were then; mmengine has set them for the step that comes next.
            runner.message_hub.update_info("iter", runner.iter - 1)
            runner.message_hub.update_info("epoch", runner.epoch - by_epoch)
            runner.val_loop.run()


@HOOKS.register_module()
class SkipBadImagesHook(Hook):
    """Reads another image in place of one that cannot be read; counts and lists them.

    The list is `unreadable_images.txt` in the work dir, written at every checkpoint and at the end.
    """

    priority = "VERY_HIGH"

    def __init__(self):
        self.found: set[str] = set()

    def before_train(self, runner) -> None:
        self._queue = multiprocessing.get_context().SimpleQueue()
        runner.train_dataloader.dataset.__getitems__.unreadable = self._queue

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        self._drain()

    def after_train(self, runner) -> None:
        self.write(runner)
        path = Path(runner.work_dir) / "unreadable_images.txt"
        where = f", listed in {path}" if self.found else ""
        runner.logger.info(f"unreadable images that others stood in for: {len(self.found)}{where}")

    def write(self, runner) -> None:
        """Write the list of all processes; all of them call it at the same point."""
        self._drain()
        self.found = set().union(*from_all(self.found))
        if self.found and is_main_process():
            lines = "\n".join(sorted(self.found))
            write_atomically(Path(runner.work_dir) / "unreadable_images.txt", f"{lines}\n")

    def _drain(self) -> None:
        while not self._queue.empty():
            self.found.add(self._queue.get())


def check_resumable(path: str | Path, checkpoint: Mapping) -> None:
    """Refuse to go on from what is no state of a run.

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
            f"{path}: holds weights, not the state of a run; --resume goes on from a run's own "
            "checkpoints, --init-from starts from any"
        )


class TrainingState:
    """What a checkpoint holds beside mmengine's own.

    That is how many processes there were, the buffers of each (batch statistics differ where
    nothing synchronises them), the gradients of an accumulation that is under way, the patience of
    early stopping and the images that could not be read.

    Args:
        runner: whose state to collect or to restore.
    """

    def __init__(self, runner):
        self.runner = runner

    def collect(self) -> dict:
        """The state of all processes; every process calls it at the same point."""
        loop = self.runner.train_loop
        state = dict(
            world_size=get_world_size(),
            epoch_length=len(loop.dataloader),
            processes=from_all(self._of_this_process()),
        )
        for hook in self._hooks(EarlyStoppingHook):
            state["early_stopping"] = (hook.wait_count, float(hook.best_score), loop.stop_training)
        for hook in self._hooks(SkipBadImagesHook):
            hook.write(self.runner)
            state["unreadable_images"] = sorted(hook.found)
        return state

    def restore(self, state: dict | None) -> None:
        """Set this process as it was; say in one line where that cannot be exact."""
        runner, loop = self.runner, self.runner.train_loop
        if state is None:
            runner.logger.warning("the checkpoint is another program's: not resumed bit for bit")
            return
        for hook in self._hooks(EarlyStoppingHook):
            if "early_stopping" in state:
                hook.wait_count, hook.best_score, loop.stop_training = state["early_stopping"]
        for hook in self._hooks(SkipBadImagesHook):
            hook.found = set(state.get("unreadable_images", ()))
        length = len(loop.dataloader)
        if isinstance(loop, EpochBasedTrainLoop) and length != state["epoch_length"]:
            done = loop._iter - loop._epoch * state["epoch_length"]
            loop._iter = loop._epoch * length + done * length // state["epoch_length"]
        if state["world_size"] != get_world_size():
            runner.logger.warning(
                f"saved by {state['world_size']} processes and resumed by {get_world_size()}: goes "
                f"on at epoch {loop._epoch}, iteration {loop._iter}, but not bit for bit"
            )
            return
        if length != state["epoch_length"]:
            runner.logger.warning(
                f"an epoch had {state['epoch_length']} batches and has {length}: goes on at epoch "
                f"{loop._epoch}, iteration {loop._iter}, but not bit for bit"
            )
        mine = state["processes"][get_rank()]
        own = dict(self._buffers())
        for name, value in mine["buffers"].items():
            own[name].copy_(value)
        for name, value in mine["gradients"].items():
            parameter = self._model.get_parameter(name)
            parameter.grad = value.to(parameter.device, parameter.dtype)

    def _of_this_process(self) -> dict:
        several = get_world_size() > 1
        wrapper = self.runner.optim_wrapper
        # Of several optimizers each model decides itself when to step.
        under_way = isinstance(wrapper, OptimWrapper) and not wrapper.should_update()
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in self._model.named_parameters()
            if under_way and parameter.grad is not None
        }
        buffers = {name: value.cpu() for name, value in self._buffers()} if several else {}
        return dict(buffers=buffers, gradients=gradients)

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
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    def _hooks(self, kind: type[Hook]) -> list[Hook]:
        return [hook for hook in self.runner.hooks if isinstance(hook, kind)]
