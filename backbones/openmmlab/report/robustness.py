"""Arrange a report's section on corrupted images: tables and charts of `robustness.json`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from backbones.openmmlab.evaluation.corruption import CORRUPTIONS, GROUPS

from .charts import Series, line_chart
from .metrics import Metrics
from .tables import Cell, Table

DARKEST = 60  # per cent of the colour in a cell whose score is lost altogether


def robustness_view(record: Mapping, metrics: Metrics) -> dict[str, Any] | None:
    """Arrange a summary, heat maps of corruptions by severities and charts; None without scores.

    Args:
        record: what `robustness.json` holds.
        metrics: what the scores are called; the main ones get heat maps.
    """
    clean, corrupted = record.get("clean") or {}, record.get("corrupted") or {}
    if not clean or not corrupted:
        return None
    severities = sorted({int(s) for row in corrupted.values() for s in row})
    order = [name for name in dict.fromkeys((*CORRUPTIONS, *corrupted)) if name in corrupted]
    summary = []
    for key, row in (record.get("summary") or {}).items():
        kept = "–" if row["rPC"] is None else f"{row['rPC']:.1%}"
        figures = [metrics.shown(key, row["clean"]), metrics.shown(key, row["mPC"]), kept]
        summary.append([Cell(metrics.name(key)), *map(Cell, figures)])
    maps = []
    for key in metrics.main(clean):
        rows = []
        for name in order:
            scores = {int(s): figures.get(key) for s, figures in corrupted[name].items()}
            known = [scores.get(s) for s in severities]
            values = [value for value in known if value is not None]
            mean = sum(values) / len(values) if len(values) == len(known) else None
            cells = [_cell(metrics, key, scores.get(s), clean.get(key), s) for s in severities]
            cells.append(_cell(metrics, key, mean, clean.get(key), None))
            rows.append([Cell(name.replace("_", " ")), *cells])
        title = f"{metrics.title(key)}, on clean images {metrics.shown(key, clean.get(key))}"
        maps.append(
            dict(title=title, table=Table(["corruption", *map(str, severities), "mean"], rows))
        )
    return dict(
        subject=_subject(record.get("subject") or {}, len(order), severities),
        summary=Table(["", "clean", "mPC", "rPC"], summary),
        maps=maps,
        charts=list(_charts(clean, corrupted, severities, metrics)),
    )


def _subject(subject: Mapping, corruptions: int, severities: Sequence[int]) -> str:
    images = subject.get("images")
    return (
        f"{subject.get('checkpoint', 'A checkpoint')} on {images} images under {corruptions} of "
        f"the {len(CORRUPTIONS)} corruptions of arXiv:1903.12261 at "
        f"{'severities' if len(severities) > 1 else 'severity'} "
        f"{', '.join(map(str, severities))}, seed {subject.get('seed', 'unknown')}."
    )


def _charts(
    clean: Mapping, corrupted: Mapping, severities: Sequence[int], metrics: Metrics
) -> Iterator[Markup]:
    """Draw scores over severity by kind of corruption, then shares of clean by size and outline."""
    x = [0, *severities]
    axes: dict[str, Any] = dict(x_label="severity, 0 is clean", markers=True)
    main = metrics.main(clean)
    for key in main:
        lines = []
        for i, (group, members) in enumerate(GROUPS.items()):
            means = [_mean(corrupted, key, s, members) for s in severities]
            if any(mean is not None for mean in means):
                lines.append(Series(group, x, [clean.get(key), *means], i))
        title = f"{metrics.title(key)} by kind of corruption"
        yield line_chart(lines, title=title, y_label=metrics.name(key), legend_of_one=True, **axes)

    def share(key: str, name: str, colour: int) -> Series:
        means = [_mean(corrupted, key, s, tuple(corrupted)) for s in severities]
        y = [None if mean is None else 100 * mean / clean[key] for mean in means]
        return Series(name, x, [100.0, *y], colour)

    shares: dict[str, Any] = dict(y_label="per cent of clean", **axes)
    known = [metric for metric in map(metrics.get, main) if metric]
    # Of boxes and masks the latter, which a task names last.
    for metric in [m for m in known if m.sizes and not m.outline_of][-1:]:
        lines = [
            share(key, metrics.name(key).removeprefix(metric.name).strip(), i)
            for i, key in enumerate(metric.sizes)
            if clean.get(key)
        ]
        title = f"{metrics.title(metric.key)} by size of the object"
        yield line_chart(lines, title=title, legend_of_one=True, **shares)
    for metric in known:
        pair = (metric.outline_of, metric.key)
        if metric.outline_of and all(clean.get(key) for key in pair):
            lines = [share(key, metrics.name(key), i) for i, key in enumerate(pair) if key]
            yield line_chart(lines, title="Masks and their boundaries", **shares)


def _mean(corrupted: Mapping, key: str, severity: int, members: Sequence[str]) -> float | None:
    """Average over the corruptions that were measured at this severity."""
    rows = [corrupted[name].get(str(severity), {}) for name in members if name in corrupted]
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _cell(
    metrics: Metrics, key: str, score: float | None, clean: float | None, severity: int | None
) -> Cell:
    """Return a cell of the heat map; hovering shows its share of the clean score."""
    if score is None or not clean:
        return Cell(metrics.shown(key, score))
    place = "mean over severities" if severity is None else f"severity {severity}"
    lost = min(max(1 - score / clean, 0.0), 1.0)
    hover = f"{place}: {score / clean:.1%} of the clean score"
    return Cell(metrics.shown(key, score), lost=round(lost * DARKEST), hover=hover)
