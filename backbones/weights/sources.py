"""Resolve a checkpoint's source: a local path, a URL, a repository of the hub or a timm tag."""

import hashlib
import os
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin, urlparse

import torch
from mmengine.dist import barrier

from backbones.errors import InputError

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
# What stands before the first colon of a source that is no path.
REMOTE = ("http", "https", "timm", "hf-hub")


def check_path(source: str | os.PathLike) -> None:
    """Reject, before anything is built, a path that leads to no file; URLs and hub names pass.

    Raises:
        InputError: there is no such file, or it is a folder without weights.
    """
    source = os.fspath(source)
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
    failure = None
    missing = not path.is_file()
    if _first_on_this_machine() and missing:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError, ValueError) as error:
            failure = getattr(error, "reason", error)
    barrier()
    if not path.is_file():
        raise InputError(
            f"{url}: download failed ({failure or 'see the first rank'}); "
            f"download it elsewhere and put it at {path}",
            code="download-failed",
            where=url,
        )
    return path, missing


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
                        local_files_only=not first,
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
    if problem:
        raise InputError(f"{source}: {problem}", code="not-found", where=source)
