"""Tests on an emulated CUDA device, each file of them in one process that has it.

Outside, a test passes as its namesake does in that process: the first one of a file starts it for
all tests of the file that are to run. Nothing here tells how fast a GPU is.
"""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from support.emulated_gpu.preloading import INSIDE, build, environment, missing
from support.running import REPOSITORY

LIMIT = 900  # seconds for a file


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory, request):
    """Outcomes by file and name of the tests, filled in by file."""
    found: dict[Path, dict[str, tuple[str, str]]] = {}
    folder = tmp_path_factory.mktemp("emulated_gpu")
    library = None if INSIDE or missing() else build(folder)

    def of(file: Path) -> dict[str, tuple[str, str]]:
        if file not in found:
            names = [item.nodeid for item in request.session.items if item.path == file]
            report = folder / f"{file.stem}.xml"
            done = subprocess.run(
                # Short tracebacks: nothing has a value there, so a tensor cannot be written out.
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
                + ["--tb=short", f"--rootdir={REPOSITORY}", f"--junitxml={report}", *names],
                env=environment(library),
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            assert report.is_file(), done.stdout + done.stderr
            found[file] = {
                case.get("name"): _outcome(case)
                for case in ElementTree.parse(report).iter("testcase")
            }
        return found[file]

    return of


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for result in case:
        if result.tag in ("failure", "error", "skipped"):
            return result.tag, result.text or result.get("message", "")
    return "passed", ""


@pytest.fixture(autouse=True)
def on_the_emulated_gpu(request):
    if not INSIDE and (reason := missing()):
        pytest.skip(reason)
    if INSIDE:
        torch.backends.cudnn.enabled = False  # the no-op GPU has none


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if INSIDE:
        return None
    of = pyfuncitem._request.getfixturevalue("outcomes")
    outcome, text = of(pyfuncitem.path).get(pyfuncitem.name, ("error", "did not run"))
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(text, pytrace=False)
    return True


@pytest.fixture
def gpu():
    """The emulator, within which CUDA kernels compute what the CPU's do."""
    if not INSIDE:
        yield None
        return
    from support.emulated_gpu.emulation import EmulatedCuda

    with EmulatedCuda([REPOSITORY]) as emulator:
        yield emulator
