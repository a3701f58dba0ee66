"""Run a tool in a process of its own and print, every few seconds, how far it is."""

import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

EVERY = 8  # seconds between two lines
KEPT = 30  # lines of the tool's output that are printed if it fails
# The progress in mmengine's lines of iterations and in those of predict.
PROGRESS = re.compile(
    r"(?:\((?P<mode>train|val|test)\) *)?(?:\[(?P<epoch>\d+)\])?\[ *(?P<step>\d+)/(?P<steps>\d+)\]"
    r"(?:.*? eta: (?P<left>[\d:]+))?(?:.*? loss: (?P<loss>[\d.]+))?"
)


def run_step(title: str, tool: Path, *arguments: object) -> None:
    """Run a tool as a user would, with lines about its progress in place of its log.

    Args:
        title: what the tool does here.
        tool: a program in tools/.
        arguments: its command line.

    Raises:
        SystemExit: the tool failed, with its status; the end of its output is on stderr.
    """
    verb, words = tool.stem.replace("_", "-"), list(map(str, arguments))
    print(f"\n{title}\n$ {' '.join([convnext(), verb, *words])}", flush=True)
    lines: Queue[str] = Queue()
    last: deque[str] = deque(maxlen=KEPT)
    where = "loading libraries and data"
    began = printed = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-u", str(tool), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        reader = Thread(target=lambda: [*map(lines.put, process.stdout or ())], daemon=True)
        reader.start()
        while reader.is_alive() or not lines.empty():
            try:
                last.append(lines.get(timeout=1))
                where = progress(last[-1]) or where
            except Empty:
                pass
            if time.monotonic() - printed >= EVERY:
                printed = time.monotonic()
                print(f"  {printed - began:4.0f} s  {where}", flush=True)
    if process.returncode:
        print(*last, sep="", file=sys.stderr)
        sys.exit(process.returncode)


def progress(line: str) -> str:
    """Return how far a line of a tool's output says that it is; "" if it does not say."""
    found = PROGRESS.search(line)
    if found is None:
        return ""
    mode, epoch, left, loss = found.group("mode", "epoch", "left", "loss")
    parts = [
        epoch and f"epoch {epoch}",
        f"{found['step']} of {found['steps']}" + (" validated" if mode == "val" else ""),
        left and f"{left} left",
        loss and f"loss {loss}",
    ]
    return ", ".join(filter(None, parts))


def convnext() -> str:
    """Return how to call the console command from here: by path in an environment below."""
    path = Path(os.path.relpath(Path(sys.executable).parent / "convnext"))
    return str(path) if path.is_file() and path.parts[0] != ".." else "convnext"
