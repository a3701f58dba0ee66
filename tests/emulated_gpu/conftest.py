"""Run tests on an emulated CUDA device, each file in one process that has the device.

The first test of a file starts that process, which runs all selected tests of the file. Outside it,
each test reports the outcome of the same test inside. Nothing here measures how fast a GPU is.
"""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from support.emulated_gpu.preloading import INSIDE, build, environment, missing
from support.running import REPOSITORY

LIMIT = 1800  # seconds for a file


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory, request):
    """Return a function that runs a file and returns outcomes by the names of its tests."""
    found: dict[Path, dict[str, tuple[str, str]]] = {}
    folder = tmp_path_factory.mktemp("emulated_gpu")
    library = None if INSIDE or missing() else build(folder)

    def of(file: Path) -> dict[str, tuple[str, str]]:
        if file not in found:
            names = [item.nodeid for item in request.session.items if item.path == file]
            report = folder / f"{file.stem}.xml"
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
                + [f"--rootdir={REPOSITORY}", f"--junitxml={report}", *names],
                env=environment(library),
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            found[file] = dict.fromkeys(
                (item.name for item in request.session.items if item.path == file),
                ("error", f"status {done.returncode}\n{done.stdout}\n{done.stderr}"),
            )
            if report.is_file():
                cases = ElementTree.parse(report).iter("testcase")
                found[file] |= {case.get("name"): _outcome(case) for case in cases}
        return found[file]

    return of


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for result in case:
        if result.tag in ("failure", "error", "skipped"):
            return result.tag, result.text or result.get("message", "")
    return "passed", ""


if INSIDE:
    # The texts of tensors without values take gigabytes; pytest writes them when a test fails.
    _text = torch.Tensor.__repr__
    torch.Tensor.__repr__ = lambda x, **_: f"<{tuple(x.shape)}>" if x.is_cuda else _text(x)


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
    """Enter the emulator, in which a CPU's kernels compute what is on the GPU."""
    if not INSIDE:
        yield None
        return
    from support.emulated_gpu.emulation import EmulatedCuda

    with EmulatedCuda([REPOSITORY]) as emulator:
        yield emulator
