"""Look up the names of metrics, as their task wrote them into `report.json`."""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from backbones.openmmlab.tasks import Metric

from .charts import number

FIELDS = [field.name for field in fields(Metric)]


class Metrics:
    """Hold the metrics of one or more reports, the main ones first.

    Reports of earlier versions name none: their scores are shown under the evaluator's keys.

    Args:
        reports: what their `report.json` hold.
    """

    def __init__(self, reports: Iterable[Mapping]):
        known: dict[str, Metric] = {}
        for report in reports:
            for row in report.get("metrics") or ():
                metric = Metric(**{name: row[name] for name in FIELDS if name in row})
                known.setdefault(metric.key, metric)
        self.all = sorted(known.values(), key=lambda metric: not metric.main)
        self._by_key = known

    def get(self, key: str) -> Metric | None:
        """Return the metric of a key, if a report describes it."""
        return self._by_key.get(key)

    def name(self, key: str) -> str:
        """Return a metric's name; its key if no report names it."""
        metric = self.get(key)
        return metric.name if metric else key

    def title(self, key: str) -> str:
        """Return its name as the beginning of a heading: Box AP, but mIoU."""
        name = self.name(key)
        return name[:1].upper() + name[1:] if name[1:2].islower() else name

    def main(self, scores: Iterable[str]) -> list[str]:
        """Return the keys that sum up a model; the first two if none of them is known."""
        keys = list(scores)
        return [m.key for m in self.all if m.main and m.key in keys] or keys[:2]

    def overview(self, scores: Iterable[str], count: int) -> list[str]:
        """Return the most informative keys: main metrics, then others, without those by size."""
        keys = list(scores)
        by_size = {key for metric in self.all for key in metric.sizes}
        known = [m.key for m in self.all if m.key in keys and m.key not in by_size]
        return (known or keys)[:count]

    def sorted(self, scores: Iterable[str]) -> list[str]:
        """Return the keys with those of the main metrics first."""
        keys = list(scores)
        first = [m.key for m in self.all if m.main and m.key in keys]
        return first + [key for key in keys if key not in first]

    def known(self, key: str, value: float | None) -> float | None:
        """Return a score; None for COCO's -1, where there is no such object."""
        return None if value == -1 and self.get(key) else value

    def shown(self, key: str, value: float | None) -> str:
        """Format a score: three digits for those in [0, 1]."""
        metric, value = self.get(key), self.known(key, value)
        if value is not None and metric is not None and metric.best == 1:
            return f"{value:.3f}"
        return number(value)
