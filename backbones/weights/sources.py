"""Resolve a checkpoint's source: a local path, a URL, a repository of the hub or a timm tag."""

import hashlib
import os
import re
from difflib import get_close_matches
from errno import ENOSPC
from pathlib import Path
from urllib.parse import urljoin, urlparse

import torch
from mmengine.dist import barrier

from backbones.errors import InputError
from backbones.transfer import RemoteFile, fetch, locked

from .trained import TRAINED, find_trained

# How transformers, timm and open_clip call the weights in a folder or a repository of the hub. An
# index states which tensor is in which of several files beside it.
INDEX = ".index.json"
HUB_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    f"model.safetensors{INDEX}",
    f"pytorch_model.bin{INDEX}",
)
# What precedes the first colon of a source that is not a path.
REMOTE = ("http", "https", "timm", "hf-hub")
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PATIENCE = 1.0  # seconds before a broken download is resumed
# Read by huggingface_hub too; `work_offline` sets it.
OFFLINE = "HF_HUB_OFFLINE"
# URL of a mirror of the publishers' servers, where a file's HOST/PATH is at MIRROR/HOST/PATH.
MIRROR = "CONVNEXT_MIRROR"


def work_offline() -> None:
    """Switch off downloads in this process and its children; cached files remain usable."""
    os.environ[OFFLINE] = "1"


def is_offline() -> bool:
    """Return whether downloads are switched off, by `work_offline` or by the environment."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


def resolve(source: str | os.PathLike) -> str:
    """Return the URL of a published trained model given by name; other sources unchanged.

    A file or folder with that name takes precedence.
    """
    source = os.fspath(source)
    if source.partition(":")[0] in REMOTE or Path(source).expanduser().exists():
        return source
    trained = find_trained(source)
    return trained.source if trained else source


def is_weights(source: str) -> bool:
    """Return whether a source's name is one of weights, or its folder holds weights."""
    path = Path(resolve(source)).expanduser()
    remote = resolve(source).partition(":")[0] in REMOTE
    return remote or path.suffix in SUFFIXES or _in_folder(path) != path


def check_path(source: str | os.PathLike) -> None:
    """Reject, before anything is built, a path that leads to no file; URLs and hub names pass.

    Raises:
        InputError: there is no such file, or it is a folder without weights.
    """
    source = resolve(source)
    if source.partition(":")[0] not in REMOTE:
        check_is_file(_in_folder(Path(source).expanduser()), source)


def locate(source: str) -> tuple[Path, bool]:
    """Return the local file of a checkpoint, and whether it was just downloaded from a URL."""
    scheme, _, rest = source.partition(":")
    if scheme in ("http", "https"):
        return _download(source)
    if scheme == "timm":
        if not re.fullmatch(r"[\w-]+\.[\w.-]+", rest):
            raise InputError(
                f"{source}: give the pretraining tag too, as in timm:convnext_tiny.fb_in1k",
                code="bad-value",
                where=source,
            )
        return _download_from_hub(source, f"timm/{rest}"), False
    if scheme == "hf-hub":
        return _download_from_hub(source, rest), False
    return _in_folder(Path(source).expanduser()), False


def locate_beside(source: str, index: Path, name: str) -> Path:
    """Return the local file of a name in an index, downloaded from the index's own source."""
    scheme, _, rest = source.partition(":")
    if scheme in ("http", "https"):
        return _download(urljoin(source, name))[0]
    if scheme in ("timm", "hf-hub"):
        repository, _, revision = rest.partition("@")
        owner = "timm/" if scheme == "timm" else ""
        folder = "/".join([*f"{owner}{repository}".split("/")[:2], name])
        return _download_from_hub(source, f"{folder}@{revision}" if revision else folder)
    return index.parent / name


def _in_folder(path: Path) -> Path:
    """Return the weights file in a folder saved by transformers; another path unchanged."""
    return next((path / name for name in HUB_FILES if (path / name).is_file()), path)


def _first_on_this_machine() -> bool:
    """Return whether this rank downloads; LOCAL_RANK is set by every launcher."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _download(url: str) -> tuple[Path, bool]:
    """Return the copy of a URL in torch's hub folder, and whether it is new; one rank downloads."""
    parts = urlparse(url)
    # By host and folder: half of the world's checkpoints are called pytorch_model.bin.
    below = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
    if parts.query:
        below.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:8])
    path = Path(torch.hub.get_dir(), "checkpoints", parts.netloc.replace(":", "_"), *below)
    failure: InputError | None = None
    missing = not path.is_file()
    if missing and is_offline():
        raise InputError(
            f"{url}: not in the cache, and downloads are switched off; download it elsewhere and "
            f"put it at {path}",
            code="download-failed",
            where=url,
        )
    if _first_on_this_machine() and missing:
        try:
            _fetch(url, path)
        except InputError as error:  # the other ranks wait below
            failure = error
    barrier()
    if failure:
        raise failure
    if not path.is_file():
        raise InputError(
            f"{url}: download failed, see the first rank", code="download-failed", where=url
        )
    return path, missing


def _fetch(url: str, path: Path) -> None:
    """Download a URL to a path, resuming what a broken download left beside it."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(part, wait=True):
            if not path.is_file():  # another process was faster
                fetch(RemoteFile(_mirrored(url)), path.parent, PATIENCE)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error})",
            code="no-space" if error.errno == ENOSPC else "write-failed",
            where=path,
        ) from error
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def _mirrored(url: str) -> str:
    """Return the URL to download from: the file's own, or the mirror's if one is set."""
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}" if mirror else url


def _download_from_hub(source: str, name: str) -> Path:
    """Return the cached file of `owner/name[/file][@revision]`; one rank of a machine downloads."""
    from huggingface_hub import hf_hub_download  # takes a second, and few sources need it
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/.+)?", name):
        raise InputError(
            f"{source}: a hub name is hf-hub:owner/name, optionally with @revision",
            code="bad-value",
            where=source,
        )
    owner, repository, *file = name.split("/", 2)
    first = _first_on_this_machine()
    path, failure = None, None
    for turn in (True, False):
        if turn == first:
            for candidate in file or HUB_FILES:
                try:
                    path = hf_hub_download(
                        f"{owner}/{repository}",
                        candidate,
                        revision=revision or None,
                        local_files_only=not first or is_offline(),
                    )
                    break
                except LocalEntryNotFoundError as error:  # no connection, or not what is cached
                    failure = error.__cause__ or error
                    if first:
                        break
                except EntryNotFoundError:
                    failure = failure or f"it has none of {', '.join(file or HUB_FILES)}"
                except (HfHubHTTPError, OSError, ValueError) as error:
                    failure = error
                    break
        barrier()
    if path is None:
        reason = str(failure).strip().splitlines()[0]
        raise InputError(
            f"{source}: download failed ({reason}); for a gated repository accept its licence on "
            "the hub and log in, or download the file and give its path",
            code="download-failed",
            where=source,
        )
    return Path(path)


def check_is_file(path: Path, source: str) -> None:
    """Raise an error unless the path is a file.

    Raises:
        InputError: there is none, or a folder.
    """
    problem = "is a folder; give the checkpoint file in it" if path.is_dir() else ""
    if not problem and not path.is_file():
        problem = "no such checkpoint file"
        if close := get_close_matches(source, {model.config for model in TRAINED}, n=2):
            problem += f"; did you mean the trained model {' or '.join(close)}?"
    if problem:
        raise InputError(f"{source}: {problem}", code="not-found", where=source)
