"""Download COCO 2017 and ADE20K: resume, verify, and unpack atomically."""

import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.progress import track

from backbones.errors import InputError
from backbones.transfer import CONSOLE, QUIET, RemoteFile, fetch, locked, require_space


@dataclass(frozen=True)
class Archive(RemoteFile):
    """Describe a published zip file.

    Attributes:
        folder: where it goes below the root; the last part is the one top-level folder of the zip
            file that is unpacked.
    """

    folder: str = ""


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
        # Photographs do not shrink in a zip file: unpacked they take its size once more.
        path = fetch(archive, root / "downloads", copies=2)
        unpack(path, target)
        print(f"{target} is ready; {path} can be deleted")


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
def reserved(root: Path) -> Iterator[None]:
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
    with locked(root / ".prepare_data.lock", wait=False):
        yield
