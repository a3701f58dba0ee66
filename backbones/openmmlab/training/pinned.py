"""Pin whole batches, so that their copies to a GPU go on while the host does."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import DataLoader


class PinnableBatch(dict):
    """Hold a batch whose `pin_memory`, which the DataLoader's thread calls, reaches data samples.

    PyTorch pins tensors, containers and objects with that method; mmengine's data samples have
    none, so label maps would be copied from pageable memory, for which the host waits.
    """

    def pin_memory(self) -> dict:
        return {key: _pinned(value) for key, value in self.items()}


def pin_data_samples(loader: DataLoader) -> None:
    """Make a DataLoader that pins its batches for a GPU pin the tensors inside data samples too."""
    if loader.pin_memory and torch.cuda.is_available():
        loader.collate_fn = _Collate(loader.collate_fn)


class _Collate:
    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, samples: list) -> Any:
        batch = self.collate(samples)
        return PinnableBatch(batch) if type(batch) is dict else batch


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, BaseDataElement):
        pinned = value.new()
        for name, each in value.items():
            if isinstance(each, Tensor | BaseDataElement):
                pinned.set_data({name: _pinned(each)})
        return pinned
    if isinstance(value, Mapping):
        return {key: _pinned(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_pinned(each) for each in value)
    return value
