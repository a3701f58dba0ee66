"""Build libraries and ways to run them, on the same weights and images, and compare what they give.

A candidate is built and run in a process of its own (`processes.py`), from the same seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torchvision.ops import box_iou

from backbones.errors import InputError

from .cases import Case
from .models import Run, build_backbone, build_model, library_of
from .runtimes import RUNTIMES, exported_backbone, exported_model

LIBRARIES = ("mmpretrain", "timm", "torchvision", "transformers")
COMPILED = ("timm", "torchvision")  # the fastest when compiled; compiling takes a minute each
# Largest difference of a candidate's maps, of magnitude 1 to 10, from ours in float32.
ALLOWED = {"fp32": 1e-4, "half weights": 0.05, "bf16": 0.5, "int8": 2.0}


@dataclass
class Candidate:
    """Hold a library run in one way, and its measurements.

    Attributes:
        name: the library and how it is run.
        build: makes the function that computes a case and returns its output as arrays: maps,
            labels of pixels, or the boxes and labels of a detector.
        dtype: precision, `fp32`, `bf16` or `int8`.
        seconds: time of each round.
        ratios: time of each round to the first candidate's before it.
        peak_mib: memory that the case takes beyond the model's own.
        difference: the largest difference of its output from ours in float32; for a detector or
            segmentor the share of pixels or boxes that differ.
    """

    name: str
    build: Callable[[], Run]
    dtype: str = "fp32"
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    difference: float = 0.0

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours")


def candidates_of(
    case: Case, peers: Sequence[str], ways: Sequence[str] | None, quick: bool, device: str
) -> list[Candidate]:
    """List what a case is timed with; the first is ours.

    Args:
        peers: names in `LIBRARIES` and `RUNTIMES`.
        ways: ways to run backbones; None for those that the case asks for.
        quick: only a few of them.
    """
    if not case.is_backbone:
        return list(_whole_models(case, peers, device))
    libraries = [peer for peer in peers if peer in LIBRARIES][: 1 if quick else None]
    return list(_backbones(case, libraries, peers, ways, quick, device))


def _backbones(
    case: Case,
    libraries: Sequence[str],
    peers: Sequence[str],
    ways: Sequence[str] | None,
    quick: bool,
    device: str,
) -> Iterator[Candidate]:
    def candidate(library: str, way: str, dtype: str = case.dtype) -> Candidate:
        name = f"{library} {way}{' bf16' * (dtype == 'bf16')}"
        return Candidate(name, partial(build_backbone, case, library, way, dtype, device), dtype)

    yield candidate("ours", "eager")
    if case.dtype == "bf16":
        yield candidate("ours", "eager", "fp32")
    if ways is None:
        compiled = ["compiled"] if device == "cpu" else ["max-autotune", "triton"]
        ways = ["eager", "fused"] + ["channels-last"] * case.every_way
        ways += compiled * (case.compiled and not quick)
    for library in ("ours", *libraries):
        if case.grn and library == "torchvision":
            continue  # has no V2
        for way in ways:
            if library == "ours" and way in ("eager", "channels-last"):
                continue  # is there, and its maps are channels-last in any case
            if way == "fused" and (library != "ours" or case.task == "train"):
                continue
            # A minute of compiling each, on a GPU's short time: timm's is the one to compare with.
            if way == "max-autotune" and library not in ("ours", "timm"):
                continue
            if way == "triton" and library != "ours":
                continue
            if way in ("compiled", "max-autotune") and library not in ("ours", *COMPILED):
                continue
            yield candidate(library, way)
    if case.task == "inference" and device == "cpu" and not quick:
        yield from _runtimes(case, peers, exported_backbone)


def _whole_models(case: Case, peers: Sequence[str], device: str) -> Iterator[Candidate]:
    library = library_of(case)
    for name, ours in ((f"ours for {library}", True), (f"stock {library}", False)):
        for dtype in dict.fromkeys([case.dtype, "fp32"]):
            if not ours and dtype != case.dtype:
                continue
            full = f"{name}{' bf16' * (dtype == 'bf16')}"
            yield Candidate(full, partial(build_model, case, ours, dtype, device), dtype)
    if case.task == "inference" and device == "cpu" and not case.window:
        yield from _runtimes(case, peers, exported_model)


def _runtimes(
    case: Case, peers: Sequence[str], build: Callable[[Case, str, str], Run]
) -> Iterator[Candidate]:
    for runtime in peers:
        if runtime in RUNTIMES:
            for dtype in RUNTIMES[runtime].precisions(case.dtype):
                name = runtime if dtype == "fp32" else f"{runtime} {dtype}"
                yield Candidate(name, partial(build, case, runtime, dtype), dtype)


def difference(case: Case, first: list[np.ndarray], other: list[np.ndarray], dtype: str) -> float:
    """Return how far an output in `dtype` is from ours in float32 (see `Candidate`).

    Boxes are the same within 0.05 pixels; in bf16, where stock mmdet rounds their corners to whole
    pixels and more, if they overlap by half.

    Raises:
        InputError: the first output has no boxes.
    """
    if case.is_backbone:
        return max(float(np.abs(a - b).max()) for a, b in zip(first, other, strict=True))
    if case.network == "UperNet":
        return float((first[0] != other[0]).mean())
    one, two = torch.from_numpy(first[0]), torch.from_numpy(other[0])
    if not len(one):
        raise InputError("our detector returns no boxes to compare outputs by", code="no-data")
    if not len(two):
        return 1.0
    alike = torch.cdist(one, two, p=float("inf")) <= 0.05
    if dtype != "fp32":
        alike = box_iou(one, two) >= 0.5
    labels = torch.from_numpy(first[1])[:, None] == torch.from_numpy(other[1])
    return 1 - (alike & labels).any(1).float().mean().item()


def check(case: Case, candidate: Candidate, first: list[np.ndarray], output: list) -> None:
    """Compare a candidate's output with ours in float32.

    Raises:
        InputError: it computes another function.
    """
    rounded = "half weights" if candidate.name == "openvino" else candidate.dtype
    candidate.difference = difference(case, first, output, rounded)
    allowed = ALLOWED[rounded]
    if candidate.difference > (allowed if case.is_backbone else 0.02 + allowed):
        raise InputError(
            f"{case.name}: {candidate.name} differs from ours by {candidate.difference:.2g}; it "
            "was not timed",
            code="checkpoint-mismatch",
            where=candidate.name,
        )
