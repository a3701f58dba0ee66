"""Read and write checkpoints: no code in them is run, and damaged files are rejected."""

import json
import logging
import os
import pickletools
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path, PosixPath
from pickle import UnpicklingError
from threading import Lock
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.atomic_write import atomic_path
from backbones.checksums import sha256_of
from backbones.errors import InputError

from .names import hash_in_name
from .sources import INDEX, check_is_file, locate, locate_beside, resolve
from .trained import find_trained

_trusting: ContextVar[bool] = ContextVar("trusting", default=False)
# What PyTorch may load is set for the whole process: another thread's end would take it back.
_reading = Lock()


def read_checkpoint(
    source: str | os.PathLike, *, sha256: str | None = None, trust: bool = False
) -> Mapping:
    """Read a checkpoint on the CPU without running code from it.

    Args:
        source: local file, http(s) URL, `hf-hub:owner/name[/file][@revision]`, `timm:tag` or the
            name of a published trained model (`backbones.weights.TRAINED`); PyTorch's format or
            safetensors, or an index of several such files or a folder with either as transformers
            saves them. Downloads are kept in torch's or the hub's cache.
        sha256: the file's checksum, or the first 8 or more of its digits. The name of a download
            that ends in `-<8 digits>.pth`, as PyTorch's and OpenMMLab's do, promises one too; of a
            local file such a name is only worth a warning, and decimal digits alone are a counter
            or a date.
        trust: run what the pickle asks for; see `trusted` for what is loaded by a config.

    Raises:
        InputError: it is missing, cut off, not a checkpoint, not the one with that checksum, or a
            pickle that needs more than tensors and numbers.
    """
    if (name := os.fspath(source)) != (source := resolve(source)):
        _announce(name)
    path, downloaded = locate(source)
    try:
        _check_file(path, source)
        _check_sum(path, source, sha256)
        if path.name.endswith(INDEX):
            return _read_parts(path, source, trust or _trusting.get())
        return _read(path, source, trust or _trusting.get())
    except InputError as error:
        if downloaded:
            path.unlink(missing_ok=True)  # the next run must not find half a file
        elif urlparse(source).scheme in ("http", "https"):
            raise InputError(
                f"{error}; delete {path} to download it again", code=error.code, where=error.where
            ) from None
        raise


@cache
def _announce(name: str) -> None:
    """Log once per process which trained model a name stands for, and its licence."""
    if model := find_trained(name):
        print_log(model.line(), logger="current")


def write_checkpoint(
    tensors: Mapping[str, Tensor], path: Path, *, wrapper: str | None, safetensors: bool
) -> None:
    """Write weights to a file that is either complete or absent.

    Args:
        tensors: tensors by name, no two in the same memory.
        path: the file; its folder exists.
        wrapper: key to put them under, None for none; safetensors has no place for one.
        safetensors: write that format instead of PyTorch's.

    Raises:
        InputError: the file cannot be written; nothing is left of it.
    """
    try:
        with atomic_path(path) as part:
            if safetensors:
                save_file(dict(tensors), part, metadata={"format": "pt"})
            else:
                torch.save({wrapper: dict(tensors)} if wrapper else dict(tensors), part)
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be written ({reason})", code="write-failed", where=path
        ) from error


@contextmanager
def trusted() -> Iterator[None]:
    """Let checkpoints, `init_cfg`'s too, run code while they load: the user opted in."""
    token = _trusting.set(True)
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusted() -> bool:
    """Return whether the user opted in to files that run code."""
    return _trusting.get()


def _check_file(path: Path, source: str) -> None:
    """Reject what is obviously no checkpoint."""
    check_is_file(path, source)
    with path.open("rb") as file:
        head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise _broken(source, "the checkpoint file is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        raise _broken(source, "is a web page, not a checkpoint; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise _broken(source, "is a Git LFS pointer, not the file; run git lfs pull")
    if head.startswith(b"pk\x03\x04"):
        check_archive(path, source)


def check_archive(path: Path, source: object = None) -> None:
    """Check every record of a PyTorch file against its checksum, which `torch.load` does not.

    Raises:
        InputError: it is truncated or corrupted, or not a PyTorch file.
    """
    source = source or path
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # PyTorch stores records as they are; packed or overlapping ones would fill the memory.
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or sum(record.file_size for record in records) > path.stat().st_size:
                raise _broken(source, "not a PyTorch checkpoint: its records exceed the file")
            damaged = archive.testzip()
    except InputError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in the reader
        raise _broken(source, f"cut off or not a PyTorch checkpoint ({error})") from None
    if damaged:
        raise _broken(source, f"damaged: {damaged} does not match its checksum")


def _check_sum(path: Path, source: str, sha256: str | None) -> None:
    """Compare the file with the given checksum and with the one that its name may contain."""
    if sha256 and not re.fullmatch(r"[\da-fA-F]{8,64}", sha256):
        raise InputError(
            f"{source}: sha256={sha256!r} is not 8 to 64 hexadecimal digits",
            code="bad-value",
            where="sha256",
        )
    digits = hash_in_name(path.name)
    if not (sha256 or digits):
        return
    found = sha256_of(path)
    downloaded = source.startswith(("http://", "https://"))
    for promised in filter(None, (sha256, digits if downloaded else None)):
        if not found.startswith(promised.lower()):
            raise _broken(
                source,
                f"wrong checksum: sha256 is {found[:16]}..., not {promised}: "
                "cut off, changed or another file",
            )
    if digits and not found.startswith(digits):
        print_log(
            f"{source}: its sha256 is {found[:16]}...; if {digits} in its name is a checksum, the "
            "file has changed",
            logger="current",
            level=logging.WARNING,
        )


def _read_parts(index: Path, source: str, trust: bool) -> dict[str, Tensor]:
    """Read the files that an index names, and check their tensors against it."""
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
        if not all(re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name) for name in names):
            raise ValueError(f"its files are {names[:3]}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(source, f"not an index of weights ({_first_line(error)})") from None
    content: dict[str, Tensor] = {}
    for name in names:
        part = locate_beside(source, index, name)
        where = str(index.parent / name)
        _check_file(part, where)
        content |= _read(part, where, trust)
    if missing := [name for name in places if name not in content]:
        raise _broken(source, f"{missing[0]} is not in {places[missing[0]]}, where it should be")
    return content


def _read(path: Path, source: str, trust: bool) -> Mapping:
    with path.open("rb") as file:
        start = file.read(10)
    if path.suffix == ".safetensors" or start[8:] == b'{"':
        try:
            return load_file(path)
        except Exception as error:
            reason = _first_line(error)
            raise _broken(source, f"cut off or not a safetensors file ({reason})") from None
    try:
        with _reading, _harmless_globals(), warnings.catch_warnings():
            # A refusal is one line, without torch's musings on the pickle's protocol before it.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        unsafe = unsafe[1] if unsafe else _first_global(path)
        if unsafe:
            raise InputError(
                f"{source}: refused, it would run {unsafe} while loading; "
                "a checkpoint holds tensors only",
                code="unsafe-checkpoint",
                where=source,
            ) from None
        raise _broken(source, "not a PyTorch checkpoint, or damaged") from None
    except Exception as error:
        reason = _first_line(error)
        raise _broken(source, f"cut off or not a PyTorch checkpoint ({reason})") from None
    if not isinstance(content, Mapping):
        raise InputError(
            f"{source}: holds a {type(content).__name__}, not weights by name",
            code="unknown-layout",
            where=source,
        )
    return content


def _broken(source: object, problem: str) -> InputError:
    return InputError(f"{source}: {problem}", code="broken-file", where=source)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _first_global(path: Path) -> str | None:
    """Return what a bare pickle would import first, from its opcodes alone."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if isinstance(argument, str):
                    strings += argument.split(" ") if opcode.name == "GLOBAL" else [argument]
                if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                    return ".".join(strings[-2:])
    except Exception:  # no pickle at all
        return None
    return None


@contextmanager
def _harmless_globals() -> Iterator[None]:
    """Allow what training scripts save beside weights if it is plain data.

    mmengine's log history, NumPy arrays and their statistics, the parsed command line: rebuilding
    them calls nothing of theirs.
    """
    allowed = [HistoryBuffer, np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar]
    allowed += [type(np.dtype(kind)) for kind in "fdilq?"]
    allowed += [Namespace, PosixPath, (_statistic, "builtins.getattr")]
    # Later versions of NumPy and Python hold the same under other names.
    allowed += [(PosixPath, "pathlib.PosixPath")]
    allowed += [(multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]
    allowed += [(multiarray.scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(allowed):
        yield


def _statistic(owner: type, name: str) -> object:
    """Stand in for getattr as mmengine's checkpoints use it; reject any other use."""
    if owner is HistoryBuffer and name in ("mean", "max", "min", "current"):
        return getattr(owner, name)
    raise UnpicklingError(f"GLOBAL builtins.getattr({owner}, {name!r})")
