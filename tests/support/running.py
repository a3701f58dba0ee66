"""Run the tools as a user starts them."""

import io
import os
import re
import resource
import runpy
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).parents[2]
DETECTION = REPOSITORY / "configs" / "detection" / "cascade_convnext_atto_demo.py"
CLASSIFICATION = REPOSITORY / "configs" / "classification" / "convnext_atto_demo.py"
SEGMENTATION = REPOSITORY / "configs" / "segmentation" / "upernet_convnext_atto_demo.py"


@dataclass
class Outcome:
    """Hold how a tool ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""

    @property
    def code(self) -> str | None:
        """Return the code of the mistake that ended the tool (`backbones.errors.Code`)."""
        found = re.fullmatch(r"error: .* \[([a-z-]+)\]", self.last_line)
        return found and found[1]


def command(program: str, *arguments: object) -> list[str]:
    """Return the command line of a program in tools/ or benchmarks/."""
    path = REPOSITORY / "tools" / program
    start = [str(path)] if path.is_file() else ["-m", f"benchmarks.{path.stem}"]
    return [sys.executable, *start, *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_tool(
    tool: str,
    *arguments: object,
    cwd: Path,
    largest_file: int | None = None,
    **environment: str,
) -> Outcome:
    """Run a tool in a process of its own, which may write files of `largest_file` bytes at most."""
    done = subprocess.run(
        command(tool, *arguments),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
        preexec_fn=largest_file
        and partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file, largest_file)),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_here(program: str, *arguments: object) -> Outcome:
    """Run a program in this process, if it ends before a run is built: imports take seconds."""
    path = REPOSITORY / "tools" / program
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        patch.object(sys, "argv", [str(path), *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            if path.is_file():
                runpy.run_path(str(path), run_name="__main__")
            else:
                runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue())


def assert_error(outcome: Outcome, code: str, *names: object) -> None:
    """Check that a tool ended in one line with this code, which contains each of these names.

    Names are files, keys, classes, options and numbers: what stays when a text is reworded.
    """
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.code == code, outcome.last_line
    for name in names:
        assert str(name) in outcome.last_line, outcome.last_line
