"""Download files: resume, verify, and move into place atomically."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from .errors import InputError

CONSOLE = Console(stderr=True)
QUIET = not CONSOLE.is_terminal  # no progress bars in a log file


@dataclass(frozen=True)
class RemoteFile:
    """Describe a published file.

    Attributes:
        url: where it is.
        size: its size in bytes, if the publisher tells it.
        md5: its MD5, hexadecimal, if known.
    """

    url: str
    size: int | None = None
    md5: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(urlparse(self.url).path).name


def fetch(remote: RemoteFile, folder: Path, patience: float = 1.0, copies: int = 1) -> Path:
    """Download a file into a folder, check its size and MD5, and return its path.

    An interrupted download resumes from `NAME.part`. A broken connection is tried again after
    `patience` seconds, then after twice that and so on, until five tries in a row bring nothing. A
    file NAME that exists already, downloaded by hand for example, is checked and used.

    Args:
        remote: what to download.
        folder: where to put it; its parent exists.
        patience: seconds before the second try.
        copies: number of files of this size that must fit on the disk.

    Raises:
        InputError: there is no connection, the server answers with an error, the disk has too
            little space, or the file is not the published one.
    """
    folder.mkdir(exist_ok=True)
    final, part = folder / remote.name, folder / f"{remote.name}.part"
    if final.exists():
        if flaw := find_flaw(final, remote):
            raise InputError(
                f"{final} {flaw}; delete it and run again", code="broken-file", where=final
            )
        return final
    CONSOLE.print(f"downloading {remote.url}", soft_wrap=True, highlight=False, markup=False)
    started, failures = False, 0
    with byte_bar() as bar:
        task = bar.add_task("downloading", total=remote.size)
        while True:
            have = part.stat().st_size if part.exists() else 0
            if have == remote.size:
                break
            problem = receive(remote, part, have, partial(bar.update, task), copies)
            if problem is None:
                break
            if part.exists() and part.stat().st_size > have:
                started, failures = True, 0
            # Where nothing ever came there is no network; once something has, it may come back.
            if not started or failures == 5:
                raise _failed(remote, folder, f"{remote.url}: {problem}")
            time.sleep(patience * 2**failures)
            failures += 1
    if flaw := find_flaw(part, remote):
        part.unlink()
        raise _failed(remote, folder, f"{remote.url}: the file received {flaw}; it was deleted")
    part.rename(final)
    return final


def receive(
    remote: RemoteFile, part: Path, have: int, report: Callable[..., None], copies: int
) -> str | None:
    """Request once what follows the first `have` bytes; return None, or why it is incomplete."""
    request = Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code == 416:  # nothing follows: all is here, or the check will tell
            return None
        if error.code >= 500:
            return f"HTTP {error.code} {error.reason}"
        problem = f"{remote.url}: HTTP {error.code} {error.reason}"
        raise _failed(remote, part.parent, problem) from None
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response:
        if response.status != 206:  # the server sends all of it, whatever was asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = remote.size if length is None else have + int(length)
        if remote.size not in (None, total):
            problem = f"{remote.url} offers {total} bytes, not the {remote.size} expected"
            raise _failed(remote, part.parent, problem)
        require_space(part.parent, copies * (total or 0) - have)
        with part.open("ab" if have else "wb") as file:
            while True:
                try:
                    chunk = response.read1(1 << 18)
                except (OSError, HTTPException) as error:
                    return str(error) or type(error).__name__
                if not chunk:
                    break
                file.write(chunk)
                have += len(chunk)
                report(completed=have, total=total)
    return None if total in (None, have) else f"closed after {have} of {total} bytes"


def find_flaw(path: Path, remote: RemoteFile) -> str | None:
    """Return how a file differs from the published one, or None."""
    size = path.stat().st_size
    if remote.size not in (None, size):
        return f"has {size} bytes where {remote.size} are expected"
    if remote.md5 is None:
        return None
    digest = hashlib.md5(usedforsecurity=False)
    with byte_bar() as bar, bar.open(path, "rb", description="checking") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if remote.md5 != digest.hexdigest():
        return f"has MD5 {digest.hexdigest()} where {remote.md5} is expected"
    return None


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Lock a file while a download is written beside it, or to it.

    There is no lock on Windows, nor on network file systems that have none; a lock ends with its
    process.

    Args:
        path: the file, which is created if it does not exist.
        wait: whether to wait for another process that holds the lock.

    Raises:
        InputError: another process holds the lock, and `wait` is false.
    """
    with path.open("ab") as file:
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"{path.parent}: another process downloads there; wait for it or stop it",
                code="unsupported",
                where=path.parent,
            ) from None
        except (ImportError, OSError):
            pass
        yield


def _failed(remote: RemoteFile, folder: Path, problem: str) -> InputError:
    place = folder / remote.name
    advice = f"run again, or download {remote.name} by hand and put it at {place}"
    return InputError(f"{problem}; {advice}", code="download-failed", where=remote.url)


def require_space(folder: Path, needed: int) -> None:
    """Raise InputError unless that many bytes are free on the folder's disk."""
    if needed > (free := shutil.disk_usage(folder).free):
        need = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        raise InputError(
            f"{folder}: not enough space, {need}; free some or choose another folder",
            code="no-space",
            where=folder,
        )


def byte_bar() -> Progress:
    """Return a progress bar in bytes, with the rate and the time left."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=CONSOLE, disable=QUIET)
