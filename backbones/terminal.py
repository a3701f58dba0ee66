"""Print tables to a terminal, a pipe or a file."""

from rich.console import Console


def console(width: int) -> Console:
    """Return a console on standard output, `width` characters wide where that is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)
