"""Running the tools as a user does."""

import io
import os
import re
import runpy
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).parents[2]
DETECTION = REPOSITORY / "configs" / "detection" / "cascade_convnext_atto_demo.py"
SEGMENTATION = REPOSITORY / "configs" / "segmentation" / "upernet_convnext_atto_demo.py"


@dataclass
class Outcome:
    """How a tool ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def command(program: str, *arguments: object) -> list[str]:
    """The command line of a program in tools/ or benchmarks/."""
    folders = (REPOSITORY / "tools", REPOSITORY / "benchmarks")
    (path,) = (folder / program for folder in folders if (folder / program).is_file())
    return [sys.executable, str(path), *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_tool(tool: str, *arguments: object, cwd: Path, **environment: str) -> Outcome:
    """In a process of its own."""
    done = subprocess.run(
        command(tool, *arguments),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_here(tool: str, *arguments: object) -> Outcome:
    """In this process, for what ends before a run is built: importing mmdet takes seconds."""
    argv = command(tool, *arguments)[1:]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    path = [str(Path(argv[0]).parent), *sys.path]
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "path", path),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.last_line.startswith("error: ")
    for word in words:
        assert re.search(word, outcome.last_line), outcome.last_line
