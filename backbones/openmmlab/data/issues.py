"""What an examination of a config, its data and this machine has found."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

# From the gravest: the run fails or computes something else; it is likely worse than it could be;
# it is good to know.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Issue:
    """One thing to know before training.

    Attributes:
        severity: `error`, `warning` or `note`.
        where: the file or config key that it is about.
        text: what it is, in one line.
        advice: what to do; empty where there is nothing to do.
    """

    severity: str
    where: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" + (f"; {self.advice}" if self.advice else "")

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def by_severity(issues: Iterable[Issue]) -> list[Issue]:
    """The gravest first, otherwise in their order, each once."""
    return sorted(dict.fromkeys(issues), key=lambda issue: SEVERITIES.index(issue.severity))


def of_weight(issues: Iterable[Issue]) -> bool:
    """Whether there is an error or a warning among them."""
    return any(issue.severity != "note" for issue in issues)


def first_of(names: Sequence[object], count: int = 3) -> str:
    """How many there are and the first of them: `12, first a, b, c`."""
    shown = ", ".join(map(str, names[:count]))
    return shown if len(names) <= count else f"{len(names)}, first {shown}"
