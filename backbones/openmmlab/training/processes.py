"""What the processes of one run tell each other, on the CPU whatever the gradients travel by."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from backbones.errors import InputError, Preempted

_group: distributed.ProcessGroup | None = None


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process calls it at the same point."""
    if not _several():
        return flag
    raised = torch.tensor(int(flag))
    distributed.all_reduce(raised, distributed.ReduceOp.MAX, group=_cpu_group())
    return bool(raised)


def from_all(value: object) -> list:
    """The values of all processes, by rank; every process calls it at the same point."""
    if not _several():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=_cpu_group())
    return values


@contextmanager
def process_group_left() -> Iterator[None]:
    """Around a tool's work: end the threads that carry messages while Python still runs.

    One that lets go of a Python object while the interpreter ends aborts the process (SIGABRT), and
    torchrun takes the run that was done for failed. After an error nothing is waited for: another
    process may be gone.
    """
    try:
        yield
    except Preempted:
        _leave()
        raise
    _leave()


def what_was_lost(error: Exception) -> InputError | None:
    """One line for a run that lost a data worker or one of its processes; None for other errors.

    PyTorch says what a data worker died of from a signal handler, and what was interrupted may make
    an error of its own of it, which knows less.
    """
    text, worker, cause = str(error), None, error
    while cause is not None:
        pattern = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)"
        worker = re.search(pattern, str(cause), re.DOTALL) or worker
        cause = cause.__context__
    if worker and "Bus error" in worker[2]:
        return InputError(
            f"data worker {worker[1]} ran out of shared memory: enlarge /dev/shm (docker run "
            "--shm-size) or lower num_workers; if training, continue with --resume"
        )
    if worker:
        return InputError(
            f"data worker {worker[1]} was killed{_by(worker[2])}: lower the data loader's "
            "num_workers or batch_size, or give the run more memory; if training, "
            "continue with --resume"
        )
    lost = "onnection closed by peer|onnection reset by peer|Broken pipe|remote process exited"
    if _several() and (re.search(lost, text) or isinstance(error, distributed.DistNetworkError)):
        return InputError(
            f"process {distributed.get_rank()} lost another process of the run, killed or ended by "
            "an error of its own, which is above or in its log; if training, continue with --resume"
        )
    return None


def _by(text: str) -> str:
    if "Killed" in text or "exited unexpectedly" in text:
        return " (SIGKILL), as the kernel's out-of-memory killer does"
    signal = re.search(r"by signal: ([\w ]+)", text)
    return f" ({signal[1].strip()})" if signal else ""


def _leave() -> None:
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
        _group = distributed.new_group(backend="gloo")
    return _group
