"""Emulate a CUDA device on the host, for machines without a GPU.

The tensors are real CUDA tensors of the no-op GPU (`preloading`), whose memory is the host's.
Dispatcher, autograd, autocast and GradScaler are torch's own; where a CUDA kernel would be launched
its CPU twin runs on the same memory instead. It shows devices, dtypes and what the host waits for;
it cannot show the kernels' own bugs, their order of summation, nor time. SyncBN's kernels and
collectives have no effect. Random draws on the device come from the CPU's default generator.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

# No kernel: the no-op device does them right.
ALLOCATION = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty}
ALLOCATION |= {aten.new_empty_strided, aten.set_, aten.resize_, aten.record_stream}
ALLOCATION |= {aten.lift_fresh, aten.is_pinned, aten._pin_memory}
# SyncBN's kernels, which have no CPU twin; these stay without effect.
WITHOUT_TWIN = {aten.batch_norm_stats, aten.batch_norm_elemt, aten.batch_norm_backward_reduce}
WITHOUT_TWIN |= {aten.batch_norm_backward_elemt, aten.batch_norm_gather_stats_with_counts}
COMMUNICATION = {"c10d", "_c10d_functional", "fsdp"}

INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
MOVING = {aten._to_copy, aten.copy_}
# The host waits for the size of the result, or for the result itself.
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount}
WAITING |= {aten.unique_dim, aten.unique_consecutive, aten._unique2, aten.repeat_interleave}

# torch's own lines are left out of a place, but for one of those that a training step is made of.
TORCH_LINES = ("torch/optim/", "torch/amp/", "torch/nn/utils/")


class EmulatedCuda(TorchDispatchMode):
    """Compute whatever is on "cuda" by the CPU's kernels, while it is entered.

    Args:
        roots: folders of the code under test, for the places of `syncs`; default: the current one.

    Attributes:
        syncs: how often the host waited for the device, by (kind, place).
        copies: non-blocking copies, by (kind, place).
        ops: calls that launch kernels, by name of the operator.
        dtypes: the same by (name, dtype of the first CUDA tensor).
    """

    def __init__(self, roots: Iterable[str | Path] = (".",)) -> None:
        super().__init__()
        self.roots = tuple(f"{Path(root).resolve()}/" for root in roots)
        self.syncs, self.copies, self.ops, self.dtypes = Counter(), Counter(), Counter(), Counter()
        self._cudnn = []

    def reset(self) -> None:
        for counter in (self.syncs, self.copies, self.ops, self.dtypes):
            counter.clear()

    def __enter__(self):
        if not (torch.cuda.is_available() and torch.cuda.get_device_name() == "no-op GPU"):
            raise RuntimeError("EmulatedCuda works on the no-op GPU alone; see `preloading`")
        # cuDNN's operators (cudnn_batch_norm) have no CPU twin
        self._cudnn.append(torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        torch.backends.cudnn.enabled = self._cudnn.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Under inference_mode composite operators come here whole, `to`, which may copy, as a view.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE.name):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(is_traceable_wrapper_subclass(x) for x in tensors):
            return NotImplemented  # a DTensor calls again for what it holds
        on_gpu = [x for x in tensors if x.is_cuda]
        if not on_gpu and not _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten.lift_fresh:  # torch.tensor(data, device="cuda"), copied by now
            self.syncs["H2D copy", self._place(2)] += 1
        if func.is_view or packet in ALLOCATION or func.namespace in COMMUNICATION:
            return func(*args, **kwargs)

        name = str(packet)
        self.ops[name] += 1
        if on_gpu:
            self.dtypes[name, str(on_gpu[0].dtype).removeprefix("torch.")] += 1
        self._record(packet, args, kwargs)
        _check_devices(name, packet, tensors, on_gpu)
        if packet in WITHOUT_TWIN:
            return func(*args, **kwargs)
        sized = packet in WAITING or packet in INDEXING  # by values, which a spare call lacks
        if torch.are_deterministic_algorithms_enabled() and not sized:
            _refuse_as_cuda_does(func, args, kwargs)
        return _run_on_host(func, args, kwargs, tensors)

    def _record(self, packet, args, kwargs) -> None:
        if packet in MOVING:
            if packet is aten.copy_:
                target, source, *rest = args
                to_gpu, waits = target.is_cuda, not kwargs.get("non_blocking", any(rest))
            else:
                source, device = args[0], kwargs.get("device")
                to_gpu = source.is_cuda if device is None else _is_cuda(device)
                waits = not kwargs.get("non_blocking")
            if to_gpu != source.is_cuda:
                kind = "H2D copy" if to_gpu else "D2H copy"
                (self.syncs if waits else self.copies)[kind, self._place()] += 1
        elif packet in INDEXING:
            indices = [x for x in args[1] if x is not None]
            masks = any(x.dtype in (torch.bool, torch.uint8) for x in indices)
            # putting one value under a mask is masked_fill
            if masks and (packet is aten.index or args[2].numel() > 1):
                self.syncs["boolean index", self._place()] += 1
            if not all(x.is_cuda for x in indices):
                self.syncs["index from the CPU", self._place()] += 1
        elif packet in WAITING and kwargs.get("output_size") is None:
            kind = "item" if packet is aten._local_scalar_dense else packet.__name__
            self.syncs[kind, self._place()] += 1
        elif str(packet) == "torchvision.nms":
            self.syncs["nms", self._place()] += 1

    def _place(self, depth: int = 3) -> str:
        """Return the two innermost lines that tell, and the first in the roots if it is neither."""
        frame, lines, own = sys._getframe(depth), [], None
        while frame is not None and not (own and len(lines) > 1):
            file, number = frame.f_code.co_filename, frame.f_lineno
            root = next((r for r in self.roots if file.startswith(r)), None)
            package = file.rpartition("/site-packages/")[2]
            line = None
            if package != file:
                torchs = package.startswith("torch/")
                if not torchs or not lines and package.startswith(TORCH_LINES):
                    line = f"{package}:{number}"
            elif root:
                line = f"{file.removeprefix(root)}:{number}"
                own = own or line
            if line and line not in lines:
                lines.append(line)
            frame = frame.f_back
        shown = lines[:2] + ([own] if own and own not in lines[:2] else [])
        return " < ".join(shown)


def _is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _check_devices(name: str, packet, tensors: list[Tensor], on_gpu: list[Tensor]) -> None:
    """Refuse what CUDA kernels do: scalars, indices and step counts alone may be on the CPU."""
    if packet in MOVING | INDEXING or "_foreach_" in name or "_fused_" in name:
        return
    if len(on_gpu) < len(tensors) and any(x.dim() and not x.is_cuda for x in tensors):
        found = ", ".join(f"{x.device} {tuple(x.shape)}" for x in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {found}")


def _refuse_as_cuda_does(func, args, kwargs) -> None:
    """Raise what the CUDA operator does where it adds in no fixed order."""
    spare = tree_map(
        lambda x: torch.empty_like(x) if isinstance(x, Tensor) and x.is_cuda else x, (args, kwargs)
    )
    try:
        func(*spare[0], **spare[1])
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise


def host_view(x: Tensor) -> Tensor:
    """Return the memory of a CUDA tensor of the no-op GPU as a CPU tensor."""
    if not x.numel():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    storage = x.untyped_storage()
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=x.dtype, count=storage.nbytes() // x.element_size())
    return flat.as_strided(x.shape, x.stride(), x.storage_offset())


def _run_on_host(func, args, kwargs, tensors: list[Tensor]):
    twins: dict[int, tuple[Tensor, Tensor]] = {}

    def to_host(x):
        if isinstance(x, Tensor) and x.is_cuda:
            if id(x) not in twins:
                twins[id(x)] = x, host_view(x)
            return twins[id(x)][1]
        # a CUDA generator: draws come from the CPU's default one
        return None if isinstance(x, torch.Generator) else x

    host_args, host_kwargs = tree_map(to_host, (list(args), dict(kwargs)))
    device = kwargs.get("device")
    on_gpu = bool(twins) if device is None else _is_cuda(device)
    if device is not None:
        host_kwargs["device"] = torch.device("cpu")
    if "pin_memory" in host_kwargs:
        host_kwargs["pin_memory"] = None
    result = func(*host_args, **host_kwargs)

    def to_device(y):
        if not isinstance(y, Tensor) or any(y is x for x in tensors):
            return y
        for x, twin in twins.values():
            if y is twin:
                return x
            if y.numel() and y.untyped_storage().data_ptr() == twin.untyped_storage().data_ptr():
                moved = (y.data_ptr() - twin.data_ptr()) // y.element_size()
                return x.as_strided(y.shape, y.stride(), x.storage_offset() + moved)
        if not on_gpu:
            return y
        x = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device="cuda")
        if y.numel():
            host_view(x).copy_(y)
        return x

    return tree_map(to_device, result)
