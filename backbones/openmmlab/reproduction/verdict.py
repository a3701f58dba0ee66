"""Write the verdict on a model as JSON and as a row of a Markdown table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backbones.atomic_write import write_atomically
from backbones.errors import InputError

from .figures import TOLERANCE, Figure, conclude

HEADER = "| model | published | measured | verdict | machine and versions | date |"
RULE = "|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Verdict:
    """Hold what was measured of a model, and on what.

    Attributes:
        settings: all that a figure depends on: model, address and SHA-256 of the file, data, config
            options, machine and versions. A run resumes figures of equal settings only.
        figures: its figures, those measured and those that are still missing.
        is_published_set: whether the data is the set that the scores are published for.
        date: UTC, as YYYY-MM-DD.
    """

    settings: Mapping[str, Any]
    figures: Sequence[Figure]
    is_published_set: bool
    date: str

    @property
    def conclusion(self) -> str:
        return conclude(self.figures, self.is_published_set)

    @property
    def failed(self) -> bool:
        """Return whether a measured figure differs from the expected one."""
        return any(figure.agrees is False for figure in self.figures)

    def row(self) -> str:
        """Return the row of a Markdown table with the columns of `HEADER`."""

        def values(of: str) -> str:
            found = [(figure.name, getattr(figure, of)) for figure in self.figures]
            return ", ".join(f"{v:.4g} {name}" for name, v in found if v is not None)

        machine = ", ".join(f"{key} {value}" for key, value in self.settings["machine"].items())
        changed = self.settings["options"]
        told = f"{self.conclusion}; with {changed}" if changed else self.conclusion
        cells = (self.settings["model"], values("expected"), values("measured"), told, machine)
        return f"| {' | '.join(cells)} | {self.date} |"

    def write(self, path: Path) -> None:
        """Write the verdict as JSON, and the row beside it as .md.

        Raises:
            InputError: a file cannot be written.
        """
        document = dict(
            verdict=self.conclusion,
            is_published_set=self.is_published_set,
            tolerance=TOLERANCE,
            figures=[{**asdict(f), "agrees": f.agrees} for f in self.figures],
            date=self.date,
            settings=dict(self.settings),
        )
        write_atomically(path, json.dumps(document, indent=2) + "\n")
        write_atomically(path.with_suffix(".md"), f"{HEADER}\n{RULE}\n{self.row()}\n")


def read_verdict(path: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a verdict's file.

    Raises:
        InputError: the file does not exist or is no verdict.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        [(f["name"], f["expected"], f["measured"]) for f in document["figures"]]
        document["settings"]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", code="not-found", where=path) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not a verdict of convnext reproduce; delete it or give another file",
            code="broken-file",
            where=path,
        ) from None
    return document


def resumed_figures(
    path: Path, settings: Mapping[str, Any], figures: Sequence[Figure]
) -> list[Figure]:
    """Return the figures with the values that an earlier run of equal settings measured.

    Raises:
        InputError: there is a file of this name that is no verdict.
    """
    if not path.exists():
        return list(figures)
    earlier = read_verdict(path)
    if earlier["settings"] != settings:
        return list(figures)
    known = {figure["name"]: figure["measured"] for figure in earlier["figures"]}
    return [Figure(f.name, f.expected, known.get(f.name)) for f in figures]
