"""Handle signals in DataLoader workers, and report a worker's death."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from torch.utils.data import dataloader
from torch.utils.data._utils import signal_handling

UNTIL_SIGNAL = 2.0  # seconds from a worker's connections closed to SIGCHLD, on a busy machine
# Where multiprocessing waits: for a message, for the rest of one that a dead worker began, and for
# a lock that it held.
WAITS = ("select", "_recv", "__enter__")


def ignore_group_signals() -> None:
    """Leave signals that reach the whole process group to the training process.

    A DataLoader worker calls it when it starts.

    A worker ended by SIGTERM would end the run before it has saved. The process that trains ends
    its workers by SIGTERM too; that one is known by its sender.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait(parent: int) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, args=(os.getppid(),), daemon=True).start()


@contextmanager
def raising_worker_deaths() -> Iterator[None]:
    """Raise a DataLoader worker's death where the loop waits for data, within the context.

    PyTorch's own handler raises wherever the signal finds the process: while a file is written, or
    in a destructor, which prints a traceback and forgets it. And a worker's connections close
    before the signal is sent: the loop may then end by an error that names no worker.

    Raises:
        RuntimeError: PyTorch's, which names the worker and what it died of.
    """
    main = threading.main_thread()
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not main:
        yield
        return
    deaths: list[RuntimeError] = []
    raised = False

    def on_child(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not deaths:
            try:
                signal_handling._error_if_any_worker_fails()
            except RuntimeError as error:
                deaths.append(error)
        if not deaths or raised:
            return
        if frame and frame.f_code.co_name in WAITS and _loading(traceback.walk_stack(frame)):
            raised = True
            raise deaths[0]
        again = threading.Timer(0.1, signal.pthread_kill, (main.ident, number))
        again.daemon = True
        again.start()

    signal_handling._set_SIGCHLD_handler()  # once a process, so not after ours
    former = signal.signal(signal.SIGCHLD, on_child)
    try:
        yield
    except Exception as error:
        loading = _loading(traceback.walk_tb(error.__traceback__))
        end = time.monotonic() + UNTIL_SIGNAL * (loading and isinstance(error, OSError | EOFError))
        while not deaths and time.monotonic() < end:
            time.sleep(0.01)
        if deaths and loading and not raised:
            raise deaths[0] from error
        raise
    finally:
        # What is left of the loop's workers ends with it, and PyTorch's handler would report each.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if deaths else former)
        deaths.clear()  # an error and the frame it left would keep the loop's workers alive


def _loading(frames: Iterable[tuple[FrameType, int]]) -> bool:
    return any(frame.f_code.co_filename == dataloader.__file__ for frame, _ in frames)
