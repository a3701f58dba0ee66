"""Compare several runs on one page: scores, cost, curves, and the keys where configs differ."""

from collections.abc import Mapping, Sequence

from .charts import Series, line_chart
from .metrics import Metrics
from .page import smooth
from .tables import cost_rows, table
from .templating import fill


def compare(reports: Mapping[str, Mapping]) -> str:
    """Return a page with several runs side by side, as HTML.

    Args:
        reports: what their `report.json` hold, by the names that the runs are to have.
    """
    names, runs = list(reports), list(reports.values())
    metrics = Metrics(runs)
    scores = score_table(runs)
    differences = config_differences(runs)
    classes, columns = _by_class(runs)
    return fill(
        "comparison.html",
        title=f"{len(runs)} runs side by side",
        names=names,
        scores=table(
            ["", *names], [[metrics.name(key), *values] for key, values in scores], best=True
        ),
        cost=table(["", *names], [[name, *cells] for name, cells in cost_rows(runs)]),
        charts=_charts(names, runs, metrics),
        differences=table(["key", *names], differences, text=True) if differences else None,
        by_class=table(
            ["class", *names],
            [[name, *(column.get(name) for column in columns)] for name in classes],
            best=True,
            tall=True,
        )
        if classes
        else None,
    )


def score_table(runs: Sequence[Mapping]) -> list[tuple[str, list[float | None]]]:
    """Return (metric's key, one value for each run) in the metrics' units, the main ones first."""
    metrics = Metrics(runs)
    scores = [run.get("evaluation", {}).get("scores", {}) for run in runs]
    keys = metrics.sorted(dict.fromkeys(key for row in scores for key in row))
    rows = [(key, [metrics.known(key, row.get(key)) for row in scores]) for key in keys]
    return [(key, values) for key, values in rows if any(v is not None for v in values)]


def config_differences(runs: Sequence[Mapping]) -> list[list[str]]:
    """Return rows of a key and one text for each run, for the keys on which they differ."""
    resolved = [run.get("config", {}).get("resolved", {}) for run in runs]
    keys = sorted({key for config in resolved for key in config})
    rows = [[key, *(config.get(key, "–") for config in resolved)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _charts(names: Sequence[str], runs: Sequence[Mapping], metrics: Metrics) -> list[str]:
    charts = []
    curves = [run.get("training", {}).get("curves", {}) for run in runs]
    for key, label, title in (
        ("loss", "loss", "Loss"),
        ("lr", "learning rate", "Highest learning rate"),
        ("time", "seconds", "Seconds per iteration"),
    ):
        lines = []
        for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
            values = curve.get("values", {})
            if key == "lr":
                rates = [v for k, v in values.items() if k.startswith("lr/")]
                y = [_largest(row) for row in zip(*rates, strict=True)]
            else:
                y = smooth(values.get(key, []))
            if y:
                lines.append(Series(name, curve["steps"], y, colour=i))
        charts.append(line_chart(lines, title=title, x_label="iteration", y_label=label))
    for key in metrics.main(key for key, _ in score_table(runs)):
        lines = []
        for i, (name, run) in enumerate(zip(names, runs, strict=True)):
            rows = run.get("training", {}).get("scores", [])
            rows = [row for row in rows if key in row["figures"]]
            x, y = [row["step"] for row in rows], [row["figures"][key] for row in rows]
            lines.append(Series(name, x, y, colour=i))
        label = metrics.name(key)
        title = f"{metrics.title(key)} by iteration"
        charts.append(
            line_chart(lines, title=title, x_label="iteration", y_label=label, markers=True)
        )
    return charts


def _by_class(runs: Sequence[Mapping]) -> tuple[list[str], list[dict[str, float | None]]]:
    """Return the names of the classes, and each run's IoU or box AP by class."""
    columns = []
    for run in runs:
        column = {}
        for row in run.get("evaluation", {}).get("per_class") or []:
            value = row.get("IoU", (row.get("bbox") or {}).get("AP"))
            column[row["name"]] = value
        columns.append(column)
    return list(dict.fromkeys(name for column in columns for name in column)), columns


def _largest(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None
