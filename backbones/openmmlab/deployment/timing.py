"""Time models on images, each in a process of its own.

Threads of a runtime that wait by spinning take the cores from the other runtimes of a process.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from backbones.errors import InputError
from backbones.openmmlab.peak_memory import peak_beyond, reset_peak
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import ROOMS
from backbones.weights import trusted


@dataclass(frozen=True)
class TimedModel:
    """Name a model that a process of its own is to open.

    Attributes:
        name: what a message calls it.
        model: an exported file, or a config.
        checkpoint: weights of the config's model; None for a file.
        trust: whether the checkpoint may run code.
    """

    name: str
    model: Path | Config
    checkpoint: str | None = None
    trust: bool = False


@dataclass
class Timing:
    """Hold what was measured of a model.

    Attributes:
        seconds: seconds per image of each round, from the tensor that the test pipeline made to
            the prediction in pixels of the original image.
        memory_mib: how far opening and predicting raised the resident set; NaN where the system
            does not tell.
    """

    seconds: list[float] = field(default_factory=list)
    memory_mib: float = 0.0

    def quartiles(self) -> tuple[float, float, float]:
        """Return the lower quartile, the median and the upper quartile of the seconds."""
        return quartiles(self.seconds)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def time_in_turns(
    models: Sequence[TimedModel], images: Sequence[str], rounds: int, threads: int
) -> list[Timing]:
    """Time models on the same images, one process at a time.

    Half of the rounds are run in the order of the models and the other half in the reverse order,
    in new processes, so that a machine that slows down slows down all of them.

    Args:
        models: what is timed.
        images: image files; a round predicts each of them once.
        rounds: number of rounds of each model, at least 1.
        threads: threads of each runtime.

    Returns:
        One timing for each model.

    Raises:
        InputError: a model cannot be opened or cannot predict an image, or its process ended.
    """
    timings = [Timing() for _ in models]
    for turn, count in enumerate((rounds - rounds // 2, rounds // 2)):
        if not count:
            continue
        order = list(zip(models, timings, strict=True))
        for model, timing in reversed(order) if turn else order:
            found = _time_in_a_process(model, images, count, threads)
            timing.seconds += found.seconds
            timing.memory_mib = max(timing.memory_mib, found.memory_mib)
    return timings


def _time_in_a_process(
    model: TimedModel, images: Sequence[str], rounds: int, threads: int
) -> Timing:
    methods = multiprocessing.get_all_start_methods()
    forking = "forkserver" in methods
    context: Any = multiprocessing.get_context("forkserver" if forking else "spawn")
    tasks = [package for package in ROOMS.values() if package in sys.modules]
    if forking:  # a server that has imported what is imported here, and started no thread
        context.set_forkserver_preload([__name__, *tasks])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(sending, model, list(images), rounds, threads, tasks)
    )
    process.start()
    sending.close()
    try:
        found = receiving.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"{model.name}: its process ended with status {process.exitcode}; was there too "
            "little memory?",
            code="lost-process",
            where=model.name,
        ) from None
    process.join()
    if isinstance(found, InputError):
        raise found
    return found


def _work(
    sending: Connection,
    model: TimedModel,
    images: Sequence[str],
    rounds: int,
    threads: int,
    tasks: Sequence[str],
) -> None:
    """Time a model in this process, and send the timing or the user's mistake.

    The tasks' packages are imported first: their memory is not the model's.
    """
    for task in tasks:
        import_module(task)
    torch.set_num_threads(threads)
    try:
        sending.send(_time(model, images, rounds))
    except InputError as error:
        sending.send(error)


def _time(model: TimedModel, images: Sequence[str], rounds: int) -> Timing:
    if isinstance(model.model, Config):
        if imports := model.model.get("custom_imports"):
            import_modules_from_strings(**imports)
    before = reset_peak()
    with trusted() if model.trust else nullcontext():
        predictor = Predictor(model.model, model.checkpoint, device="cpu")
    packed = [predictor.packed(image) for image in images]
    for one in packed:  # memory is allocated, and kernels are chosen
        predictor.predict([deepcopy(one)])
    timing = Timing(memory_mib=peak_beyond(before))
    for _ in range(rounds):
        seconds = 0.0
        for one in packed:
            given = deepcopy(one)  # predictions are set in the samples
            start = time.perf_counter()
            predictor.predict([given])
            seconds += time.perf_counter() - start
        timing.seconds.append(seconds / len(packed))
    return timing
