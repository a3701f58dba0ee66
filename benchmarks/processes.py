"""Run each candidate in a process of its own, so that no threads that spin slow another one.

Only one process works at a time; the others wait for a request.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from backbones.errors import InputError

from .candidates import Candidate, check
from .cases import Case
from .measure import peak_memory, processor_seconds, seconds

SECONDS = 20  # of a candidate and the first one together; what takes longer gets fewer rounds
WARMED_BELOW = 1.0  # seconds of a run that another one, not timed, precedes: it has lost its cache


class Process:
    """Hold the process of a candidate.

    Args:
        candidate: what it builds.
        case: what it computes.
        threads: number of CPU threads.
        cuda: whether times and memory are a GPU's.

    Attributes:
        busy: seconds of processor time that it has used.

    Raises:
        InputError: it cannot be built here, or the process ended.
    """

    def __init__(self, candidate: Candidate, case: Case, threads: int, cuda: bool):
        methods = multiprocessing.get_all_start_methods()
        forking = "forkserver" in methods and not cuda
        context: Any = multiprocessing.get_context("forkserver" if forking else "spawn")
        if forking:  # a server that has imported what takes seconds, and has started no thread
            context.set_forkserver_preload([__name__, "mmdet.models", "mmseg.models"])
        self._name, self.busy = candidate.name, 0.0
        self._here, there = context.Pipe()
        arguments = (there, candidate.build, case, threads, cuda)
        self._process = context.Process(target=_serve, args=arguments, daemon=False)
        self._process.start()
        there.close()
        self._receive()

    def output(self) -> list:
        """Return the output of the case's inference."""
        return self._ask("output")

    def seconds(self) -> float:
        """Time the case once."""
        return self._ask("seconds")

    def peak_mib(self) -> float:
        """Return the memory that the case takes beyond what is held."""
        return self._ask("peak")

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()

    def _ask(self, what: str) -> Any:
        self._here.send(what)
        return self._receive()

    def _receive(self) -> Any:
        try:
            found, self.busy = self._here.recv()
        except EOFError:
            self._process.join()
            raise InputError(
                f"{self._name}: its process ended with status {self._process.exitcode}",
                code="lost-process",
                where=self._name,
            ) from None
        if isinstance(found, InputError):
            raise found
        return found


def _serve(connection: Connection, build: Callable, case: Case, threads: int, cuda: bool) -> None:
    torch.set_num_threads(threads)
    inference = replace(case, task="inference")
    try:
        run = build()
        connection.send((None, time.process_time()))
        last = 0.0
        while True:
            what = connection.recv()
            if what == "output":
                found: Any = run(inference)
            elif what == "peak":
                found = peak_memory(lambda: run(case), cuda)
            else:
                if last < WARMED_BELOW:
                    run(case)
                found = last = seconds(lambda: run(case), cuda)
            connection.send((found, time.process_time()))
    except EOFError:
        return  # it was closed
    except InputError as error:
        connection.send((error, time.process_time()))


def time_in_turns(
    case: Case,
    candidates: Sequence[Candidate],
    rounds: int | None,
    threads: int,
    cuda: bool,
    progress: Callable[[str], None],
) -> float:
    """Check and time each candidate in turns with the first one, which is ours, in `candidates`.

    Only these two have a process at a time. Rounds are ours, the other's, ours, and so on; a ratio
    is that of a round. Before a candidate is timed its output is compared with ours in float32.

    Args:
        rounds: of each pair; None means 7, or fewer for a slow case, at least 3.
        threads: number of CPU threads.
        cuda: whether times and memory are a GPU's.
        progress: is called with each candidate's name before it is timed.

    Returns:
        The share of the machine's busy time that other processes used.

    Raises:
        InputError: a candidate computes another function, or its process ended.
    """
    before, busy = processor_seconds(), time.process_time()
    first = candidates[0]
    exact = next(c for c in candidates if c.is_ours and c.dtype == "fp32")
    with closing(Process(exact, case, threads, cuda)) as process:
        truth = process.output()
        busy -= process.busy
    with closing(Process(first, case, threads, cuda)) as ours:
        check(case, first, truth, ours.output())
        first.peak_mib = ours.peak_mib()
        if len(candidates) == 1:
            first.seconds = [ours.seconds() for _ in range(rounds or 7)]
        for other in candidates[1:]:
            progress(other.name)
            with closing(Process(other, case, threads, cuda)) as process:
                check(case, other, truth, process.output())
                other.peak_mib = process.peak_mib()
                one_round = ours.seconds() + process.seconds()
                for _ in range(rounds or max(3, min(7, int(SECONDS / one_round)))):
                    first.seconds.append(ours.seconds())
                    other.seconds.append(process.seconds())
                    other.ratios.append(other.seconds[-1] / first.seconds[-1])
                busy -= process.busy
        busy -= ours.busy
    first.ratios = [1.0]
    everything = processor_seconds() - before
    return max(0.0, 1 - (time.process_time() - busy) / everything)
