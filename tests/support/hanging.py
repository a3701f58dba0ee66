"""Stop readers that never return."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hangs(BaseException):
    """End a reader that hangs; no `except Exception` of a reader catches it."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise `Hangs` if the block takes more processor time than this."""

    def stop(*_):
        raise Hangs

    former = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # of this process alone
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)
