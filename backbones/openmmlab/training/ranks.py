"""Exchange messages between the ranks of a run on the CPU, whatever the gradients' backend."""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from mmengine.model import is_model_wrapper
from torch import distributed, nn

from backbones.errors import InputError, Preempted

_group: distributed.ProcessGroup | None = None


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; every rank calls it at the same point."""
    return any_rank_each([flag])[0]


def any_rank_each(flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is set on any rank, in a single message."""
    if not _several():
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int64)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in raised]


def all_gather_object(value: object) -> list:
    """Return the values of all ranks in order; every rank calls it at the same point."""
    if not _several():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=_cpu_group())
    return values


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, without the wrapper that synchronizes the ranks' gradients."""
    return model.module if is_model_wrapper(model) else model  # pyright: ignore[reportReturnType]


@contextmanager
def process_group_cleanup() -> Iterator[None]:
    """Destroy the process group after a tool's work, while the interpreter still runs.

    A communication thread that releases a Python object while the interpreter shuts down aborts the
    process (SIGABRT), and torchrun takes the finished run for a failed one. After an error nothing
    is waited for: another rank may be gone.
    """
    try:
        yield
    except Preempted:
        _destroy()
        raise
    _destroy()


def lost_process_error(error: Exception) -> InputError | None:
    """Return one line for a run that lost a DataLoader worker or a rank; None for other errors.

    PyTorch reports a worker's death from a signal handler; the code that it interrupts may turn it
    into an error of its own, which knows less.
    """
    text, worker, cause = str(error), None, error
    while cause is not None:
        pattern = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)"
        worker = re.search(pattern, str(cause), re.DOTALL) or worker
        cause = cause.__context__
    if worker and "Bus error" in worker[2]:
        return _lost(
            f"DataLoader worker {worker[1]} ran out of shared memory: enlarge /dev/shm (docker run "
            "--shm-size) or lower num_workers",
            f"DataLoader worker {worker[1]}",
        )
    if worker:
        return _lost(
            f"DataLoader worker {worker[1]} was killed{_by(worker[2])}: lower the DataLoader's "
            "num_workers or batch_size, or give the run more memory",
            f"DataLoader worker {worker[1]}",
        )
    lost = "onnection closed by peer|onnection reset by peer|Broken pipe|remote process exited"
    if _several() and (re.search(lost, text) or isinstance(error, distributed.DistNetworkError)):
        rank = distributed.get_rank()
        return _lost(
            f"rank {rank} lost another rank, which was killed or failed (see above or its log)",
            f"rank {rank}",
        )
    return None


def _lost(text: str, where: str) -> InputError:
    return InputError(
        f"{text}; if training, continue with --resume", code="lost-process", where=where
    )


def _by(text: str) -> str:
    if "Killed" in text or "exited unexpectedly" in text:
        return " (SIGKILL), as the kernel's out-of-memory killer does"
    signal = re.search(r"by signal: ([\w ]+)", text)
    return f" ({signal[1].strip()})" if signal else ""


def _destroy() -> None:
    global _group
    if distributed.is_initialized():
        distributed.destroy_process_group()
        _group = None
        gc.collect()  # a trained model's wrapper, in cycles with its runner, holds the group too


def _several() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


def _cpu_group() -> distributed.ProcessGroup:
    global _group
    if _group is None:
        _group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))
    return _group
