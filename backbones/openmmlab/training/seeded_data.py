"""Load batches from any position, with augmentations that depend on a sample's place alone.

Every draw of an augmentation is a function of the seed, the rank and the sample's place in the
order of samples. So it makes no difference how many DataLoader workers there are, how far they had
read ahead or what they read before.
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from backbones.errors import InputError, UnreadableImage

from .seeds import SAMPLE, seed_draws

TRIES = 100


class Placed(NamedTuple):
    """Hold a sample's index in the data set, and the seed of its draws."""

    index: int
    entropy: tuple[int, ...]


@DATA_SAMPLERS.register_module()
class PlacedBatchSampler(Sampler):
    """Yield batches of another batch sampler from any position, each sample with its place.

    Args:
        sampler: sampler of indices.
        batch_size: samples per batch.
        batches: config of a batch sampler; None for PyTorch's BatchSampler.
        drop_last: leave an incomplete last batch out; for PyTorch's BatchSampler.
        seed: seed of the run.
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
        """Make the next pass start at this training iteration, with these batches if given."""
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


class SeededDataset(Dataset):
    """Read a data set at `Placed` indices, with random draws that depend on the index alone.

    Attributes and methods are those of the data set that it reads; one that is set, as by a hook
    that changes the pipeline, is set there.

    Args:
        source: gives one sample for one index.
        skip_unreadable: read another sample in place of one whose image cannot be read, and put a
            line about it into the queue `unreadable`.
    """

    source: Dataset
    unreadable: Any  # a queue, or None

    def __init__(self, source: Dataset, skip_unreadable: bool = False):
        context = multiprocessing.get_context()
        queue = context.SimpleQueue() if skip_unreadable else None
        self.__dict__.update(source=source, unreadable=queue)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling ask of this class
            raise AttributeError(name)
        return getattr(self.source, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.source, name, value)

    def __len__(self) -> int:
        return len(self.source)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, placed: Placed) -> object:
        index, entropy = placed
        seed_draws(*entropy)
        for _ in range(TRIES):
            try:
                return self._sample(index)
            except UnreadableImage as error:
                if self.unreadable is None:
                    raise
                self.unreadable.put(str(error))
                index = int(np.random.randint(len(self)))
        raise InputError(
            f"{TRIES} images drawn in a row cannot be read, the last one at index {index}",
            code="bad-image",
            where=index,
        )

    def __getitems__(self, batch: list[Placed]) -> list:
        return [self[placed] for placed in batch]

    def _sample(self, index: int) -> object:
        try:
            return self.source[index]
        except OSError as error:  # PIL does not name the label map
            if error.filename or not hasattr(self.source, "get_data_info"):
                raise
            info = self.source.get_data_info(index)  # pyright: ignore[reportAttributeAccessIssue]
            path = info.get("seg_map_path") or info["img_path"]
            raise UnreadableImage(
                f"{path}: empty, cut off or not an image ({error})", where=path
            ) from None


def with_placed_batches(dataloader: dict, seed: int) -> dict:
    """Return the config of a DataLoader whose batches can start anywhere."""
    dataloader = dict(dataloader)
    batches = dict(type="PlacedBatchSampler", batches=dataloader.get("batch_sampler"), seed=seed)
    if batches["batches"] is None:
        batches["drop_last"] = dataloader.pop("drop_last", False)
    return {**dataloader, "batch_sampler": batches}


def reading_seeded(loader: DataLoader, skip_unreadable: bool = False) -> DataLoader:
    """Return the loader over the same data, read through `SeededDataset`.

    A loader's data set cannot be exchanged once it is made, and its sampler has to know the data
    set itself: some look at its class.
    """
    return DataLoader(
        SeededDataset(loader.dataset, skip_unreadable),
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
        in_order=loader.in_order,
    )


class EndlessBatches:
    """Yield the batches of a loader, pass after pass; skip any number of them at the start."""

    def __init__(self, loader: DataLoader):
        self._loader = loader
        self._placed: Any = loader.batch_sampler
        self._iteration = 0
        self._passes = 0
        self._batches: Iterator | None = None

    def __iter__(self) -> Iterator:
        return self

    def skip_iter(self, count: int) -> None:
        """Continue as if `count` batches had been taken, without reading their images."""
        left = count
        while True:
            rest = iter(self._placed.batches)
            taken = sum(1 for _ in itertools.islice(rest, left))
            left -= taken
            if left == 0 or taken == 0:
                break
            self._next_pass()
        self._iteration = count
        self._placed.begin(count, rest)
        self._batches = iter(self._loader)

    def __next__(self) -> object:
        if self._batches is None:
            self._batches = self._begin()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._next_pass()
            self._batches = self._begin()
            batch = next(self._batches)
        self._iteration += 1
        return batch

    def _begin(self) -> Iterator:
        self._placed.begin(self._iteration)
        return iter(self._loader)

    def _next_pass(self) -> None:
        self._passes += 1
        if hasattr(self._placed.sampler, "set_epoch"):
            self._placed.sampler.set_epoch(self._passes)
