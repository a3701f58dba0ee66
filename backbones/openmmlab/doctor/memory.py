"""Peak memory of a training step, found by running it on tensors without values.

Forward and backward pass are run on fake tensors, which have a device and a size but no storage,
while every storage that comes to life and dies is counted. What a kernel takes for itself while it
runs is not seen. On a CPU the holes that glibc's malloc leaves are added; see HOLES.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones.ops.upsampled_cross_entropy import upsampled_cross_entropy

from .complexity import build_on_meta

# State tensors that each optimizer keeps for a parameter.
OPTIMIZER_STATES = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "SGD": 1, "RMSprop": 1}
GIB = 2**30
# Blocks below this (DEFAULT_MMAP_THRESHOLD_MAX of mallopt(3)) share glibc's heap; larger ones are
# mapped, and go back when they are freed.
HEAP_BLOCK = 32 * 2**20
# Bytes of the heap that lie in holes at the peak, for each byte of a step that is in use there.
# PyTorch asks for aligned blocks. glibc 2.36 cuts what is over from both ends; where a small object
# settles in it, the hole that stays behind does not fit the next block of its own size. (A step's
# allocations replayed by best fit leave no holes; with an object in every tenth of these ends they
# leave as many as are measured.) It depends on the order of all allocations, so it is calibrated by
# the head: 0.38 and 0.15 were measured for the demo detector and Cascade-T, 0.7 to 0.95 and 0.8 to
# 1.0 for the demo segmentor and UperNet-T. With all blocks mapped (MALLOC_MMAP_THRESHOLD_=65536)
# the demos take 0.07 and 0.13 more than the tensors alone.
HOLES = {"roi_head": 0.3, "decode_head": 0.85}
HOLES_ELSEWHERE = 0.5
# oneDNN copies what a convolution reads and writes on a CPU into blocks of channels.
CONVOLUTIONS = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step needs on its device at the worst moment.

    Attributes:
        parameters: weights and buffers.
        optimizer: what the optimizer keeps between steps.
        step: all that lives during forward and backward pass at its peak, gradients included.
        holes: what malloc has taken for a step and cannot use, on a CPU.
    """

    parameters: int
    optimizer: int
    step: int
    holes: int

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.step + self.holes


def predict_training(
    config: Config, images: int, size: tuple[int, int], device: str
) -> TrainingMemory:
    """Predict the peak memory of training a config's model; nothing is read or computed.

    Stochastic depth keeps every sample here, as it may. A detector's heads see as many regions as
    their samplers draw, a quarter of them (`pos_fraction`) in the mask heads.

    Args:
        config: of a two-stage detector, a segmentor or a classifier.
        images: computed at once.
        size: (width, height) of the padded batch.
        device: `cuda` or `cpu`.
    """
    config = deepcopy(config)
    for name in ("backbone", "network"):
        if "drop_path_rate" in (config.model.get(name) or {}):
            config.model[name].drop_path_rate = 0.0
    model = build_on_meta(config)
    amp = device == "cuda" and config.optim_wrapper.get("type") == "AmpOptimWrapper"
    dtype = getattr(torch, config.optim_wrapper.get("dtype") or "float16") if amp else None
    with FakeTensorMode(allow_non_fake_inputs=True):  # operators have constants
        model = model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device)).train()
        with LiveBytes() as live:
            batch = torch.empty(images, 3, *reversed(size), device=device)
            with torch.autocast(device, dtype) if amp else nullcontext():
                loss = _loss(model, batch, config)
            loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = sum(map(_bytes, trained))
        states = OPTIMIZER_STATES.get(config.optim_wrapper.optimizer.type, 2)
        accumulates = any(
            hook.get("type") == "AccumulationHook" for hook in config.get("custom_hooks") or []
        )
        shares = (share for name, share in HOLES.items() if hasattr(model, name))
        holes = next(shares, HOLES_ELSEWHERE)
        return TrainingMemory(
            parameters=sum(map(_bytes, [*model.parameters(), *model.buffers()])),
            optimizer=states * gradients,
            # A part of a step finds the gradients of those before.
            step=live.peak + gradients * accumulates,
            holes=int(holes * live.heap_peak) if device == "cpu" else 0,
        )


def available_memory(device: str) -> int:
    """Bytes that a new process could take on this machine's GPU or CPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say what is available")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside and still alive, and their peak.

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
        """Note the peaks, with blocks of these sizes beside those that are known."""
        self.peak = max(self.peak, self.now + sum(passing))
        small = sum(size for size in passing if size < HEAP_BLOCK)
        self.heap_peak = max(self.heap_peak, self.heap + small)


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _loss(model: BaseModel, batch: Tensor, config: Config) -> Tensor:
    if hasattr(model, "roi_head"):
        return _detector_loss(model, batch, config)
    if hasattr(model, "decode_head"):
        return _segmentor_loss(model, batch)
    return model.network(batch).float().logsumexp(1).mean()


def _segmentor_loss(model: BaseModel, batch: Tensor) -> Tensor:
    maps = model.extract_feat(batch)
    labels = torch.zeros(len(batch), *batch.shape[2:], dtype=torch.long, device=batch.device)
    by_blocks = getattr(model, "takes_loss_by_blocks", lambda head, maps: False)
    losses = []
    for head in (model.decode_head, getattr(model, "auxiliary_head", None)):
        if head is not None and by_blocks(head, maps):
            # Image after image in the same memory, so that one is enough.
            losses.append(upsampled_cross_entropy(head(maps)[:1], labels[:1])[0])
        elif head is not None:
            logits = interpolate(head(maps), batch.shape[2:], mode="bilinear")
            # mmseg takes the mean after the losses of the pixels.
            losses.append(cross_entropy(logits, labels, reduction="none").mean())
    return sum(losses)


def _detector_loss(model: BaseModel, batch: Tensor, config: Config) -> Tensor:
    maps = model.extract_feat(batch)
    losses = []
    if model.with_rpn:
        losses += [out.float().square().mean() for out in tree_leaves(model.rpn_head(maps))]
    settings = config.model.train_cfg.rcnn
    settings = settings if isinstance(settings, list | tuple) else [settings]
    for name in ("bbox", "mask"):
        heads = _stages(getattr(model.roi_head, f"{name}_head", None))
        extractors = _stages(getattr(model.roi_head, f"{name}_roi_extractor", None))
        for head, extractor, setting in zip(heads, extractors, settings, strict=False):
            drawn = setting.sampler.num * len(batch)
            if name == "mask":
                drawn = int(drawn * setting.sampler.pos_fraction)
            regions = _regions(maps[0], drawn, extractor)
            out = head(regions)
            if name == "mask":
                chosen = out[:, 0].float()
                losses.append(binary_cross_entropy_with_logits(chosen, torch.zeros_like(chosen)))
            else:
                losses += [each.float().square().mean() for each in tree_leaves(out)]
    return sum(losses)


def _regions(maps: Tensor, count: int, extractor: nn.Module) -> Tensor:
    """Regions (count, C, h, w) in float32 that have a gradient, as RoIAlign's result has."""
    height, width = extractor.roi_layers[0].output_size
    empty = torch.empty(count, extractor.out_channels, height, width, device=maps.device)
    return empty + maps.float().mean()


def _stages(modules: nn.Module | None) -> Iterator[nn.Module]:
    if modules is None:
        return iter(())
    return iter(modules if isinstance(modules, nn.ModuleList) else [modules])
