"""ConvNeXt weights: read safely, rename to the official layout, load with nothing left over.

A dialect is a table of renames from its own parameter names to the official ones, and the key it
is recognised by. Loading never ends half done: what does not fit is an `InputError` that names it,
GRN and layer scale included.
"""

import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from .errors import InputError


@dataclass(frozen=True)
class Dialect:
    """One layout of ConvNeXt parameter names.

    Attributes:
        name: whose layout it is.
        marker: its name, without prefix, of the first depthwise weight; no other dialect has it.
        renames: (pattern, replacement) pairs, applied in turn, to reach the official names.
    """

    name: str
    marker: str
    renames: tuple[tuple[str, str], ...] = ()


DIALECTS = (
    Dialect("official", "stages.0.0.dwconv.weight"),
    Dialect(
        "mmpretrain",
        "stages.0.0.depthwise_conv.weight",
        ((r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv([12])\.", r".pwconv\1.")),
    ),
)

# Where training scripts put the weights inside a checkpoint, the first one found wins.
WRAPPERS = ("state_dict", "model", "model_ema")


@dataclass(frozen=True)
class Coverage:
    """What became of a checkpoint's tensors and a model's parameters.

    Attributes:
        source: file or URL.
        dialect: name of the layout found.
        loaded: parameters filled from the checkpoint.
        ignored: checkpoint tensors without use here (a classifier's head, a detector's neck).
        initial: output norms that keep their initial value, because a classifier has none.
    """

    source: str
    dialect: str
    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    initial: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.source}: {len(self.loaded)} tensors loaded ({self.dialect} layout)"
        if self.ignored:
            line += f"; not needed: {_modules(self.ignored)}"
        if self.initial:
            line += f"; not in it, left at their initial value: {_modules(self.initial)}"
        return line


def load_pretrained(
    model: nn.Module, checkpoint: str | os.PathLike, prefix: str | None = None
) -> Coverage:
    """Load ConvNeXt weights of any known dialect into a `ConvNeXt` or `ConvNeXtClassifier`.

    Args:
        model: the backbone to fill; untouched if anything is wrong.
        checkpoint: local file or http(s) URL; of a classifier, a backbone, a whole detector or
            segmentor.
        prefix: where the backbone's names start in the checkpoint, if it holds several backbones.

    Raises:
        InputError: the file cannot be read, holds no ConvNeXt, another architecture, a tensor of
            another shape or a name the model does not know, or leaves a parameter of the backbone
            without a value.
    """
    tensors = state_dict(read_checkpoint(checkpoint), checkpoint)
    dialect, prefix = recognise(tensors, checkpoint, prefix)
    outside = [key for key in tensors if not key.startswith(prefix)]
    converted = to_official(
        {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, dialect
    )
    coverage, fitting = _fit(converted, outside, model, str(checkpoint), dialect)
    model.load_state_dict(fitting, strict=False)
    print_log(str(coverage), logger="current")
    return coverage


def recognise(
    tensors: Mapping[str, Tensor], source: str | os.PathLike, prefix: str | None = None
) -> tuple[Dialect, str]:
    """The dialect of a state dict and the prefix before its names, found from the keys alone."""
    found = [
        (dialect, key[: -len(dialect.marker)])
        for key in tensors
        for dialect in DIALECTS
        if key.endswith(dialect.marker)
    ]
    if prefix is not None:
        found = [(dialect, start) for dialect, start in found if start == prefix]
    if not found:
        under = f" under {prefix!r}" if prefix else ""
        raise InputError(
            f"{source}: no ConvNeXt weights{under}; its names: {_first(tuple(tensors), 3)}"
        )
    if len(found) > 1:
        prefixes = ", ".join(repr(start) for _, start in found)
        raise InputError(f"{source}: holds several backbones; choose one by prefix=: {prefixes}")
    return found[0]


def to_official(tensors: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Official names, and GRN's (4C,) or (1, 4C) parameters in the official (1, 1, 1, 4C)."""
    converted = {}
    for name, tensor in tensors.items():
        for pattern, replacement in dialect.renames:
            name = re.sub(pattern, replacement, name)
        if ".grn." in name:
            tensor = tensor.reshape(1, 1, 1, -1)
        converted[name] = tensor
    return converted


def architecture(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and dims of the stages in a state dict with official names."""
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"stages\.(\d+)\.(\d+)\.dwconv\.weight", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            dims[stage] = tensor.shape[0]
    return tuple(depths[i] for i in sorted(depths)), tuple(dims[i] for i in sorted(dims))


def mismatches(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What keeps `tensors` from filling `target` exactly, in one phrase; empty if nothing does."""
    problems = [f"{n} is unknown" for n in tensors if n not in target]
    for name, wanted in target.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != wanted.shape:
            problems.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted.shape)}")
    return _first(tuple(problems))


def _fit(
    tensors: dict[str, Tensor], outside: list[str], model: nn.Module, source: str, dialect: Dialect
) -> tuple[Coverage, dict[str, Tensor]]:
    """Match official names with the model's parameters; every mismatch is an error."""
    depths, dims = architecture(tensors)
    built = len(model.stages)
    if (depths[:built], dims[:built]) != (model.depths[:built], model.dims[:built]):
        raise InputError(
            f"{source}: holds a ConvNeXt with depths {depths} and dims {dims}, "
            f"the model has depths {model.depths} and dims {model.dims}"
        )
    target = model.state_dict()
    has_grn = any(".grn." in name for name in tensors)
    if has_grn != any(".grn." in name for name in target):
        version = ("V1", "V2")[has_grn]
        raise InputError(f"{source}: holds ConvNeXt {version} weights; set use_grn={has_grn}")

    # Left over: a classifier's norm and head, output norms and stages that out_indices leaves out.
    spare = re.compile(r"(norm|head)\.(weight|bias)|norm(\d+)\.(weight|bias)")
    later = re.compile(r"(?:downsample_layers|stages)\.(\d+)\..+")
    ignored = [
        name
        for name in tensors
        if name not in target
        and (
            spare.fullmatch(name)
            or (match := later.fullmatch(name))
            and built <= int(match[1]) < len(model.depths)
        )
    ]
    # Left at its initial value: an output norm, where the checkpoint is no dense backbone's.
    # mmpretrain's classifiers call their one norm after the last stage.
    output_norm = re.compile(r"norm(\d+)\.(?:weight|bias)")
    last = len(model.depths) - 1
    norms = {int(match[1]) for name in tensors if (match := output_norm.fullmatch(name))}
    initial = [
        name
        for name in target
        if name not in tensors and output_norm.fullmatch(name) and norms <= {last}
    ]
    fitting = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        raise InputError(f"{source}: does not fit the model: {problem}")
    coverage = Coverage(
        source, dialect.name, tuple(fitting), tuple(outside + ignored), tuple(initial)
    )
    return coverage, fitting


def read_checkpoint(source: str | os.PathLike) -> dict:
    """Read a checkpoint file or http(s) URL on the CPU without running code from it.

    Raises:
        InputError: it is missing, cut off, not a checkpoint, or a pickle that needs more than
            tensors and numbers.
    """
    source = os.fspath(source)
    path = (
        _download(source)
        if urlparse(source).scheme in ("http", "https")
        else Path(source).expanduser()
    )
    if not path.is_file():
        raise InputError(f"{source}: no such checkpoint file")
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if not head:
        raise InputError(f"{source}: the checkpoint file is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{source}: is a web page, not a checkpoint; download the file itself")
    try:
        with _harmless_globals():
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            raise InputError(
                f"{source}: refused, it would run {unsafe[1]} while loading; "
                "a checkpoint holds tensors only"
            ) from None
        raise InputError(f"{source}: not a PyTorch checkpoint, or damaged") from None
    except Exception as error:  # a damaged file may fail anywhere in the reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source}: cut off or not a PyTorch checkpoint ({reason})") from None


def state_dict(checkpoint: object, source: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors by name in what a training script saved."""
    for key in WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{source}: holds a {type(checkpoint).__name__}, not weights by name")
    tensors = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{source}: holds no tensors; its keys are {_first(tuple(checkpoint), 5)}")
    return tensors


def _download(url: str) -> Path:
    """The local copy of `url` in torch's hub folder; one process a machine downloads it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    failure = None
    if get_local_rank() == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as error:
            failure = getattr(error, "reason", error)
    barrier()
    if not path.is_file():
        raise InputError(
            f"{url}: download failed ({failure or 'see the first process'}); "
            f"fetch it where there is a network and put it at {path}"
        )
    return path


@contextmanager
def _harmless_globals():
    """What mmengine saves beside weights: its log history, NumPy arrays and their statistics."""
    numpy_core = np._core.multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, numpy_core._reconstruct, numpy_core.scalar]
    allowed += [type(np.dtype(kind)) for kind in "fdilq?"]
    with torch.serialization.safe_globals([*allowed, (_statistic, "builtins.getattr")]):
        yield


def _statistic(owner: type, name: str) -> object:
    """The one use of getattr in mmengine's checkpoints; any other is refused."""
    if owner is HistoryBuffer and name in ("mean", "max", "min", "current"):
        return getattr(owner, name)
    raise UnpicklingError(f"GLOBAL builtins.getattr({owner}, {name!r})")


def _modules(names: tuple[str, ...]) -> str:
    """The modules that parameters belong to, each once: stages.3, norm, head."""
    return ", ".join(dict.fromkeys(re.match(r"[^.]+(\.\d+)?", name)[0] for name in names))


def _first(names: tuple, count: int = 4) -> str:
    shown = ", ".join(map(str, names[:count]))
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
