"""Run tools in processes forked from one that has imported everything.

Three quarters of a small run's time are the imports of torch, mmdet and mmseg. `support.running`
starts whole interpreters; that is for what imports or the end of an interpreter decide.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

from support.running import REPOSITORY, Outcome, command

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADING = threading.Lock()


def preload() -> None:
    """Make processes of the start method `forkserver` begin with everything imported."""
    with _PRELOADING:  # threads that start processes would take each other's variable away
        _preload()


def _preload() -> None:
    before = os.environ.get("PYTHONPATH")
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), *filter(None, [before])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    multiprocessing.set_forkserver_preload(["support.preloaded"])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Forked:
    """Hold a running tool, with the part of `subprocess.Popen` that tests use.

    It leads a process group of its own.

    Args:
        argv: path of the tool and its arguments.
        cwd: to run in.
        out, err: files that its output is appended to.
        environment: all of its environment.
    """

    def __init__(self, argv: list[str], cwd: Path, out: Path, err: Path, environment: dict):
        preload()
        self._process = _CONTEXT.Process(target=_run, args=(argv, cwd, out, err, environment))
        self._process.start()
        self.pid: int = self._process.pid
        while self._process.exitcode is None and not self._leads_a_group():
            time.sleep(0.001)

    def _leads_a_group(self) -> bool:
        try:
            return os.getpgid(self.pid) == self.pid
        except ProcessLookupError:  # reaped by the server, which has not sent its status yet
            return False

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def popen(argv: list[str], *, env: dict, stdout: IO, stderr: IO, start_new_session: bool) -> Forked:
    """Stand in for `subprocess.Popen` of a Python script, in a program that a test calls."""
    assert argv[0] == sys.executable and start_new_session
    return Forked(argv[1:], Path.cwd(), Path(stdout.name), Path(stderr.name), env)


def run_forked(tool: str, *arguments: object, cwd: Path, **environment: str) -> Outcome:
    """Run a tool to its end, as `support.running.run_tool` does."""
    count = len(list(cwd.glob(".forked*")))
    out, err = cwd / f".forked{count}out", cwd / f".forked{count}err"
    argv = command(tool, *arguments)[1:]
    status = Forked(argv, cwd, out, err, {**os.environ, **environment}).wait(timeout=1800)
    return Outcome(status, out.read_text(), err.read_text())


def _run(argv: list[str], cwd: Path, out: Path, err: Path, environment: dict) -> None:
    os.setsid()
    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(argv[0]).parent), *filter(None, added)]
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
