"""Format the tables of the pages, and times, shares and sizes in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .charts import number

TALL = 12  # rows from which on a long table scrolls in a box of its own


@dataclass(frozen=True)
class Cell:
    """Hold a cell of a table.

    Attributes:
        text: what it shows.
        kind: class of its style: `wrap`, `best` or none.
        lost: per cent of the shade behind it, if it is a cell of a heat map.
        hover: text under the pointer.
    """

    text: str
    kind: str = ""
    lost: int | None = None
    hover: str = ""


@dataclass(frozen=True)
class Table:
    """Hold a table as the template takes it; with `text`, all columns are aligned to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: bool = False
    tall: bool = False


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    text: bool = False,
    tall: bool = False,
    best: bool = False,
) -> Table:
    """Format the values of a table.

    Args:
        header: names of the columns; all empty for a table without a header.
        rows: values; floats get three digits, None a dash.
        text: align everything to the left and wrap long values.
        tall: scroll within the table if it is long.
        best: mark the highest number of each row.
    """
    cells = []
    for row in rows:
        values = [v for v in row[1:] if isinstance(v, float | int)] if best else []
        highest = max(values) if len(values) > 1 and max(values) > min(values) else None
        line = []
        for i, value in enumerate(row):
            shown = fixed(value) if isinstance(value, float) or value is None else str(value)
            kind = "wrap" if text and i else ""
            if i and highest is not None and value == highest:
                kind = "best"
            line.append(Cell(shown, kind))
        cells.append(line)
    return Table(header, cells, text, tall and len(rows) > TALL)


def cost_rows(runs: Sequence[Mapping]) -> list[tuple[str, list[str]]]:
    """Return the cost of training as rows: a name and one text per run."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        training = run.get("training", {})
        cells = {
            "training time": duration(training.get("seconds")),
            "iterations": number(training.get("iterations")),
            "images per iteration": number(training.get("batch_size")),
            "seconds per iteration, median": number(training.get("seconds_per_iteration"), 3),
            "images/s": number(training.get("images_per_second"), 3),
            "peak memory": memory(training.get("peak_memory_mib")),
            "parameters": millions(training.get("parameters")),
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return list(rows.items())


def fixed(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed count of digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """Format a share in [0, 1] in per cent; a dash for None."""
    return "–" if value is None else f"{value * 100:.{digits}f}"


def millions(count: int | None) -> str:
    """Format a count in millions; a dash for none or 0."""
    return "–" if not count else f"{count / 1e6:.1f} M"


def memory(mib: float | None) -> str:
    """Format MiB as GiB; a dash for none or 0."""
    return "–" if not mib else f"{mib / 1024:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Format a time in seconds, minutes or hours; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
