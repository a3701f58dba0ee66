"""Record a run's curves in bounded memory."""

import math

POINTS = 1000  # of a curve, at most


class Curves:
    """Keep values by iteration, averaged over intervals so that there are few points.

    Args:
        points: the most that a curve has.

    Attributes:
        stride: iterations that each point averages; it doubles when there are too many points.
        steps: the last iteration of each point, counted from 1.
        values: one mean per point, by name; None where it was not given or not finite.
    """

    def __init__(self, points: int = POINTS):
        self.points = points
        self.stride = 1
        self.steps: list[int] = []
        self.values: dict[str, list[float | None]] = {}
        self._sums: dict[str, list[float]] = {}
        self._pending = 0

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add the values of one iteration.

        Args:
            step: the iteration, counted from 1.
            values: values by name.
        """
        for name, value in values.items():
            self._sums.setdefault(name, []).append(float(value))
        self._pending += 1
        if self._pending < self.stride:
            return
        self.steps.append(step)
        for name in {**self.values, **self._sums}:
            column = self.values.setdefault(name, [None] * (len(self.steps) - 1))
            column.append(_finite_mean(self._sums.get(name, [])))
        self._sums, self._pending = {}, 0
        if len(self.steps) >= self.points:
            self._halve()

    def _halve(self) -> None:
        self.steps = self.steps[1::2]
        for name, column in self.values.items():
            pairs = zip(column[::2], column[1::2], strict=False)
            self.values[name] = [_finite_mean([v for v in pair if v is not None]) for pair in pairs]
        self.stride *= 2

    def state(self) -> dict:
        """Return the state that a checkpoint or report stores."""
        return dict(stride=self.stride, steps=list(self.steps), values=dict(self.values))

    def restore(self, state: dict, until: int) -> None:
        """Restore `state`, without its points after the iteration `until`."""
        kept = sum(step <= until for step in state["steps"])
        self.stride = state["stride"]
        self.steps = list(state["steps"][:kept])
        self.values = {name: list(column[:kept]) for name, column in state["values"].items()}


def _finite_mean(values: list[float]) -> float | None:
    values = [v for v in values if math.isfinite(v)]
    return sum(values) / len(values) if values else None
