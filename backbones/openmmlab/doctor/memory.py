"""Predict the peak memory of a training step by running it on valueless tensors.

Forward and backward pass run on fake tensors, which have a device and a size but no storage, while
the bytes of all live storages are counted. Workspaces inside kernels are not seen. On a CPU the
fragmentation of glibc's heap is added.

Per byte of the heap that is in use at the peak, `Task.heap_overhead` bytes lie in holes. PyTorch
asks for aligned blocks. glibc 2.36 cuts what is over from both ends; where a small object settles
in it, the hole that stays behind does not fit the next block of its own size. (A step's allocations
replayed by best fit leave no holes; with an object in every tenth of these ends they leave as many
as are measured.) It depends on the order of all allocations, so it is calibrated by task. With all
blocks mapped (MALLOC_MMAP_THRESHOLD_=65536) the demos take 0.07 and 0.13 more than the tensors
alone.
"""

import gc
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones.openmmlab.tasks import task_of

from .complexity import build_on_meta, image_channels

# State tensors that each optimizer keeps for a parameter.
OPTIMIZER_STATES = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "SGD": 1, "RMSprop": 1}
GIB = 2**30
# Blocks below this (DEFAULT_MMAP_THRESHOLD_MAX of mallopt(3)) share glibc's heap; larger ones are
# mapped, and go back when they are freed.
HEAP_BLOCK = 32 * 2**20
# oneDNN copies what a convolution reads and writes on a CPU into blocks of channels.
CONVOLUTIONS = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
)


@dataclass(frozen=True)
class TrainingMemory:
    """Hold the bytes that a training step needs on its device at its peak.

    Attributes:
        parameters: weights and buffers.
        optimizer: state that the optimizer keeps between steps.
        step: all live tensors of forward and backward pass at their peak, gradients included.
        holes: what malloc holds and cannot reuse, on a CPU.
    """

    parameters: int
    optimizer: int
    step: int
    holes: int

    @property
    def peak(self) -> int:
        """Return the sum of all parts."""
        return self.parameters + self.optimizer + self.step + self.holes


def predict_training(
    config: Config, images: int, size: tuple[int, int], device: str
) -> TrainingMemory:
    """Predict the peak memory of training a config's model, without reading or computing anything.

    Stochastic depth keeps every sample here, as it may.

    Args:
        config: a detector's, a segmentor's or a classifier's config.
        images: computed at once.
        size: (width, height) of the padded batch.
        device: `cuda` or `cpu`.

    Raises:
        InputError, RuntimeError, TypeError, ValueError, LookupError, AttributeError or
        AssertionError: what the model computes depends on what is in the images.
    """
    task = task_of(config)
    config = deepcopy(config)
    if "drop_path_rate" in (config.model.get(task.backbone) or {}):
        config.model[task.backbone].drop_path_rate = 0.0
    model = build_on_meta(config)
    amp = device == "cuda" and config.optim_wrapper.get("type") == "AmpOptimWrapper"
    dtype = getattr(torch, config.optim_wrapper.get("dtype") or "float16") if amp else None
    with (
        FakeTensorMode(allow_non_fake_inputs=True),  # operators have constants
        DefaultScope.overwrite_default_scope(task.scope),
    ):
        model = model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device)).train()
        with LiveBytes() as live:
            batch = torch.empty(images, image_channels(config), *reversed(size), device=device)
            with torch.autocast(device, dtype) if amp else nullcontext():
                loss = task.step_loss(model, batch, config)
            loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = sum(map(_bytes, trained))
        states = OPTIMIZER_STATES.get(config.optim_wrapper.optimizer.type, 2)
        accumulates = any(
            hook.get("type") == "AccumulationHook" for hook in config.get("custom_hooks") or []
        )
        return TrainingMemory(
            parameters=sum(map(_bytes, [*model.parameters(), *model.buffers()])),
            optimizer=states * gradients,
            # A later micro-batch finds the gradients of those before it.
            step=live.peak + gradients * accumulates,
            holes=int(task.heap_overhead * live.heap_peak) if device == "cpu" else 0,
        )


def available_memory(device: str) -> int:
    """Return the bytes available to a new process on this machine's GPU or CPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all storages that are created inside and still alive, and their peak.

    `heap` and `heap_peak` count those that are small enough for malloc's heap.
    """

    def __enter__(self) -> "LiveBytes":
        gc.collect()
        self.now = self.peak = self.heap = self.heap_peak = 0
        self._known: dict[int, weakref.ref] = {}
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _counts(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if _counts(tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in before and id(storage) not in self._known:
                    self._add(storage)
        if func in CONVOLUTIONS:
            operands = [t for t in tree_leaves((args, kwargs, out)) if _counts(t) and t.is_cpu]
            self._note(list(map(_bytes, operands)))
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.now -= size
            self.heap -= size * (size < HEAP_BLOCK)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.heap += size * (size < HEAP_BLOCK)
        self._note()

    def _note(self, passing: Sequence[int] = ()) -> None:
        """Record the peaks, with blocks of these sizes beside the known ones."""
        self.peak = max(self.peak, self.now + sum(passing))
        small = sum(size for size in passing if size < HEAP_BLOCK)
        self.heap_peak = max(self.heap_peak, self.heap + small)


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
