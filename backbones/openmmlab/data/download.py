"""Download COCO 2017 and ADE20K: resume, verify, and unpack atomically."""

import fcntl
import hashlib
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn, track

from backbones.errors import InputError

CONSOLE = Console(stderr=True)
QUIET = not CONSOLE.is_terminal  # no progress bars in a log file


@dataclass(frozen=True)
class Archive:
    """Describe a published zip file.

    Attributes:
        url: where it is.
        size: its size in bytes, if the publisher tells it.
        md5: its MD5, hexadecimal, if known.
        folder: where it goes below the root; the last part is the one top-level folder of the zip
            file that is unpacked.
    """

    url: str
    size: int | None
    md5: str | None
    folder: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


COCO = "http://images.cocodataset.org"
ADE = "http://data.csail.mit.edu/places/ADEchallenge"
# The publishers give no checksums: these are the ones that independent loaders agree on. There is
# no such figure for the size of ADE20K's file.
DATASETS = {
    "coco": (
        Archive(
            f"{COCO}/annotations/annotations_trainval2017.zip",
            252907541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            "coco/annotations",
        ),
        Archive(
            f"{COCO}/zips/val2017.zip",
            815585330,
            "442b8da7639aecaf257c1dceb8ba8c80",
            "coco/val2017",
        ),
        Archive(
            f"{COCO}/zips/train2017.zip",
            19336861798,
            "cced6f7f71b7629ddf16f17bbcfab6b2",
            "coco/train2017",
        ),
    ),
    "ade20k": (
        Archive(
            f"{ADE}/ADEChallengeData2016.zip",
            None,
            "7328b3957e407ddae1d3cbf487f149ef",
            "ade/ADEChallengeData2016",
        ),
    ),
}


def prepare_archives(root: Path, archives: tuple[Archive, ...]) -> None:
    """Download and unpack the archives whose folders do not exist yet.

    Raises:
        InputError: see `fetch` and `unpack`.
    """
    for archive in archives:
        target = root / archive.folder
        if target.is_dir() and any(target.iterdir()):
            print(f"{target} is already there")
            continue
        path = fetch(archive, root / "downloads")
        unpack(path, target)
        print(f"{target} is ready; {path} can be deleted")


def fetch(archive: Archive, folder: Path, patience: float = 1.0) -> Path:
    """Download an archive into a folder, check its size and MD5, and return its path.

    An interrupted download resumes from `NAME.part`. A broken connection is tried again after
    `patience` seconds, then after twice that and so on, until five tries in a row bring nothing. A
    file NAME that exists already, downloaded by hand for example, is checked and used.

    Raises:
        InputError: there is no connection, the server answers with an error, the disk has too
            little space, or the file is not the published one.
    """
    folder.mkdir(exist_ok=True)
    final, part = folder / archive.name, folder / f"{archive.name}.part"
    if final.exists():
        if flaw := find_flaw(final, archive):
            raise InputError(
                f"{final} {flaw}; delete it and run again", code="broken-file", where=final
            )
        return final
    print(f"downloading {archive.url}")
    started, failures = False, 0
    with byte_bar() as bar:
        task = bar.add_task("downloading", total=archive.size)
        while True:
            have = part.stat().st_size if part.exists() else 0
            if have == archive.size:
                break
            problem = receive(archive, part, have, partial(bar.update, task))
            if problem is None:
                break
            if part.exists() and part.stat().st_size > have:
                started, failures = True, 0
            # Where nothing ever came there is no network; once something has, it may come back.
            if not started or failures == 5:
                raise _failed(archive, folder, f"{archive.url}: {problem}")
            time.sleep(patience * 2**failures)
            failures += 1
    if flaw := find_flaw(part, archive):
        part.unlink()
        raise _failed(archive, folder, f"{archive.url}: the file received {flaw}; it was deleted")
    part.rename(final)
    return final


def receive(archive: Archive, part: Path, have: int, report: Callable[..., None]) -> str | None:
    """Request once what follows the first `have` bytes; return None, or why it is incomplete."""
    request = Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code == 416:  # nothing follows: all is here, or the check will tell
            return None
        if error.code >= 500:
            return f"HTTP {error.code} {error.reason}"
        problem = f"{archive.url}: HTTP {error.code} {error.reason}"
        raise _failed(archive, part.parent, problem) from None
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response:
        if response.status != 206:  # the server sends all of it, whatever was asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = archive.size if length is None else have + int(length)
        if archive.size not in (None, total):
            problem = f"{archive.url} offers {total} bytes, not the {archive.size} expected"
            raise _failed(archive, part.parent, problem)
        # Photographs do not shrink in a zip file: unpacked they take its size once more.
        require_space(part.parent, 2 * (total or 0) - have)
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


def find_flaw(path: Path, archive: Archive) -> str | None:
    """Return how a file differs from the published one, or None."""
    size = path.stat().st_size
    if archive.size not in (None, size):
        return f"has {size} bytes where {archive.size} are expected"
    digest = hashlib.md5(usedforsecurity=False)
    with byte_bar() as bar, bar.open(path, "rb", description="checking") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if archive.md5 not in (None, digest.hexdigest()):
        return f"has MD5 {digest.hexdigest()} where {archive.md5} is expected"
    return None


def _failed(archive: Archive, folder: Path, problem: str) -> InputError:
    place = folder / archive.name
    advice = f"run again, or download {archive.name} by hand and put it at {place}"
    return InputError(f"{problem}; {advice}", code="download-failed", where=archive.url)


def unpack(path: Path, target: Path) -> None:
    """Unpack the top-level folder of target's name; `target` appears when it is complete.

    Raises:
        InputError: the disk has too little space, the file is damaged or has no such folder, or one
            of its members would be written elsewhere.
    """
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(path) as file, emptied(part):
            members = []
            for member in file.infolist():
                inside = PurePosixPath(member.filename.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts:
                    raise _broken(path, f"is not safe: {inside} would be written elsewhere")
                if inside.parts[:1] == (target.name,):
                    members.append(member)
            require_space(part, sum(member.file_size for member in members))
            for member in track(members, f"unpacking {path.name}", console=CONSOLE, disable=QUIET):
                file.extract(member, part)
            if not (part / target.name).is_dir():
                raise _broken(path, f"has no folder {target.name}: not the published file")
            (part / target.name).rename(target)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _broken(path, f"is damaged ({error}); delete it and run again") from None


def _broken(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}", code="broken-file", where=path)


def require_space(folder: Path, needed: int) -> None:
    """Raise InputError unless that many bytes are free on the folder's disk."""
    if needed > (free := shutil.disk_usage(folder).free):
        need = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        raise InputError(
            f"{folder}: not enough space, {need}; choose another --root",
            code="no-space",
            where=folder,
        )


def byte_bar() -> Progress:
    """Return a progress bar in bytes, with the rate and the time left."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=CONSOLE, disable=QUIET)


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """Create an empty scratch folder, without leftovers of a killed run; remove it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Create the root and lock it, since two runs would write the same .part files.

    Raises:
        InputError: the folder above does not exist, or another run holds the lock.
    """
    if not root.absolute().parent.is_dir():
        raise InputError(
            f"--root {root}: the folder {root.absolute().parent} does not exist",
            code="not-found",
            where=root.absolute().parent,
        )
    root.mkdir(exist_ok=True)
    with open(root / ".prepare_data.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{root}: another prepare_data.py is running there; wait for it or stop it",
                code="unsupported",
                where=root,
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(f"{root}: {error.strerror}; make sure that no other prepare_data.py is running")
        yield
