"""Show the progress of a prediction: a terminal bar, or lines without a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

SECONDS_OF_LINES = 10  # between two lines about one file, where there is no terminal


class FileProgress:
    """Show the progress through files, and through the tiles or frames of the current one.

    In a terminal two bars. Elsewhere a line for each file, and one every few seconds while a large
    one goes on.

    Args:
        total: number of files.
    """

    _files: TaskID
    _parts: TaskID

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self._bar: Progress | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> "FileProgress":
        console = Console()
        if console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._files = self._bar.add_task("files", total=self.total)
            self._parts = self._bar.add_task("", visible=False)
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()

    def part(self, name: str, done: int, total: int, unit: str) -> None:
        """Report progress within a file.

        Args:
            name: name of the file.
            done, total: finished parts and all parts; total is 0 if it is unknown.
            unit: name of the parts, in the plural.
        """
        if self._bar is not None:
            self._bar.update(
                self._parts, description=f"{name}, {unit}", completed=done, total=total or None,
                visible=True,
            )  # fmt: skip
        elif time.monotonic() - self._printed > SECONDS_OF_LINES:
            of = f"/{total}" if total else ""
            self._print(f"[{self.done + 1}/{self.total}] {name}: {done}{of} {unit}")

    def end(self, name: str, result: str) -> None:
        """Count a file and report its result."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._files, completed=self.done)
            self._bar.update(self._parts, visible=False)
        else:
            self._print(f"[{self.done}/{self.total}] {name}: {result}")

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._printed = time.monotonic()
