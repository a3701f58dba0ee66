"""Define the issues that checks of a config, its data and this machine report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from backbones.errors import Code, InputError

# From the gravest: the run fails or computes something else; it is likely worse than it could be;
# it is good to know.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Issue:
    """Describe one issue found before a run.

    Attributes:
        severity: `error`, `warning` or `note`.
        where: the file, config key or package that it is about.
        text: what it is, in one line.
        advice: what to do; empty where there is nothing to do.
        code: what kind of mistake it is, for programs and tests; texts may be reworded.
    """

    severity: str
    where: str
    text: str
    advice: str = ""
    code: Code | None = None

    @classmethod
    def of(cls, error: InputError, key: str) -> "Issue":
        """Return the issue that an error states; `key` is its place if it names none itself."""
        return cls("error", error.where or key, str(error), code=error.code)

    def __str__(self) -> str:
        # The text of an InputError begins with its place, other texts do not.
        named = self.text.startswith((self.where, f"config key {self.where}"))
        place = "" if named else f"{self.where}: "
        return f"{place}{self.text}" + (f"; {self.advice}" if self.advice else "")

    def as_dict(self) -> dict[str, str | None]:
        """Return the attributes by name, for JSON."""
        return asdict(self)

    def as_error(self) -> InputError:
        """Return an exception with the same text, place and code."""
        return InputError(str(self), code=self.code or "bad-config", where=self.where)


def with_code(issues: Iterable[Issue], code: Code) -> Iterator[Issue]:
    """Yield these issues; give this code to those without one."""
    for issue in issues:
        yield issue if issue.code else replace(issue, code=code)


def by_severity(issues: Iterable[Issue]) -> list[Issue]:
    """Return each issue once, the most severe first, otherwise in their order."""
    return sorted(dict.fromkeys(issues), key=lambda issue: SEVERITIES.index(issue.severity))


def of_weight(issues: Iterable[Issue]) -> bool:
    """Return whether there is an error or a warning among these issues."""
    return any(issue.severity != "note" for issue in issues)


def first_of(names: Sequence[object], count: int = 3) -> str:
    """Return the count of names and the first of them: `12, first a, b, c`."""
    shown = ", ".join(map(str, names[:count]))
    return shown if len(names) <= count else f"{len(names)}, first {shown}"
