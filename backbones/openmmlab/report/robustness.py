"""The section of a report on corrupted images: tables and charts of `robustness.json`."""

from collections.abc import Mapping, Sequence
from html import escape

from backbones.openmmlab.evaluation.corruption import CORRUPTIONS, GROUPS

from .charts import Series, line_chart, number

SIZED = ("coco/segm_mAP", "coco/bbox_mAP")  # the first that there is, by size
SIZES = {"small": "_s", "medium": "_m", "large": "_l"}
OUTLINES = (("coco/segm_mAP", "coco/boundary_mAP"), ("mIoU", "boundary_mIoU"))
DARKEST = 60  # per cent of the colour in a cell whose score is lost altogether


def robustness_section(record: Mapping, names: Mapping[str, str], main: Sequence[str]) -> str:
    """Summary, a heat map of corruptions by severities and charts; empty without scores.

    Args:
        record: what `robustness.json` holds.
        names: how metrics are called on the page.
        main: the metrics that get a heat map.
    """
    clean, corrupted = record.get("clean") or {}, record.get("corrupted") or {}
    if not clean or not corrupted:
        return ""
    severities = sorted({int(s) for row in corrupted.values() for s in row})
    order = [name for name in dict.fromkeys((*CORRUPTIONS, *corrupted)) if name in corrupted]
    subject = record.get("subject") or {}
    parts = [_note(subject, len(order), severities)]
    rows = []
    for key, row in (record.get("summary") or {}).items():
        share = "–" if row["rPC"] is None else f"{row['rPC']:.1%}"
        cells = [_shown(key, row["clean"]), _shown(key, row["mPC"]), share]
        rows.append((names.get(key, key), [(cell, 0.0, "") for cell in cells]))
    parts.append(_table("", ["clean", "mPC", "rPC"], rows))
    parts.append("<h3>By corruption and severity</h3>")
    parts.append('<p class="note">The darker a cell, the more of the clean score is lost.</p>')
    maps = []
    for key in main:
        rows = []
        for name in order:
            scores = {int(s): figures.get(key) for s, figures in corrupted[name].items()}
            cells = [_cell(key, scores.get(s), clean.get(key), s) for s in severities]
            known = [scores.get(s) for s in severities]
            mean = None if None in known else sum(known) / len(known)
            rows.append((_words(name), [*cells, _cell(key, mean, clean.get(key), None)]))
        title = names.get(key, key)
        table = _table("corruption", [*map(str, severities), "mean"], rows)
        title = f"{title[0].upper()}{title[1:]}, on clean images {_shown(key, clean.get(key))}"
        maps.append(f"<figure><figcaption>{escape(title)}</figcaption>{table}</figure>")
    parts.append(f'<div class="beside">{"".join(maps)}</div><h3>Over severity</h3>')
    charts = "".join(_charts(clean, corrupted, severities, names, main))
    parts.append(f'<div class="charts">{charts}</div>')
    return "".join(parts)


def _note(subject: Mapping, corruptions: int, severities: Sequence[int]) -> str:
    images = subject.get("images")
    text = (
        f"{subject.get('checkpoint', 'A checkpoint')} on {images} images under {corruptions} of "
        f"the {len(CORRUPTIONS)} corruptions of arXiv:1903.12261 at "
        f"{'severities' if len(severities) > 1 else 'severity'} "
        f"{', '.join(map(str, severities))}, seed {subject.get('seed', 'unknown')}. mPC is the "
        "mean over corruptions and severities, rPC its share of the clean score; – where there is "
        "no such object, or not every corruption has been measured at the same severities."
    )
    return f'<p class="note">{escape(text)}</p>'


def _charts(clean, corrupted, severities, names, main):
    """Scores over severity by kind of corruption; by size, and of outlines, as shares of clean."""
    x = [0, *severities]
    axes = dict(x_label="severity, 0 is clean", markers=True)
    for key in main:
        lines = []
        for i, (group, members) in enumerate(GROUPS.items()):
            means = [_mean(corrupted, key, s, members) for s in severities]
            if any(mean is not None for mean in means):
                lines.append(Series(group, x, [clean.get(key), *means], i))
        name = names.get(key, key)
        title = f"{name[0].upper()}{name[1:]} by kind of corruption"
        yield line_chart(lines, title=title, y_label=name, legend_of_one=True, **axes)

    def share(key: str, name: str, colour: int) -> Series:
        whole = clean[key]
        means = [_mean(corrupted, key, s, tuple(corrupted)) for s in severities]
        y = [None if mean is None else 100 * mean / whole for mean in means]
        return Series(name, x, [100.0, *y], colour)

    shares = dict(y_label="per cent of clean", **axes)
    kind = next((kind for kind in SIZED if kind in clean), None)
    if kind:
        lines = [
            share(f"{kind}{end}", size, i)
            for i, (size, end) in enumerate(SIZES.items())
            if clean.get(f"{kind}{end}")
        ]
        name = names.get(kind, kind)
        title = f"{name[0].upper()}{name[1:]} by size of the object"
        yield line_chart(lines, title=title, legend_of_one=True, **shares)
    for pair in OUTLINES:
        if all(clean.get(key) for key in pair):
            lines = [share(key, names.get(key, key), i) for i, key in enumerate(pair)]
            yield line_chart(lines, title="Masks and their boundaries", **shares)


def _mean(corrupted: Mapping, key: str, severity: int, members: Sequence[str]) -> float | None:
    """Over the corruptions that were measured at this severity."""
    rows = [corrupted[name].get(str(severity), {}) for name in members if name in corrupted]
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _cell(key: str, score: float | None, clean: float | None, severity: int | None):
    """Text, share of the clean score that is lost, and what it says under the pointer."""
    if score is None:
        return "–", 0.0, ""
    if not clean:
        return _shown(key, score), 0.0, ""
    place = "mean over severities" if severity is None else f"severity {severity}"
    lost = min(max(1 - score / clean, 0.0), 1.0)
    return _shown(key, score), lost, f"{place}: {score / clean:.1%} of the clean score"


def _shown(key: str, score: float | None) -> str:
    if score is None:
        return "–"
    return f"{score:.3f}" if key.startswith("coco/") else number(score)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(corner: str, columns: Sequence[str], rows: Sequence[tuple]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in (corner, *columns))
    body = []
    for name, cells in rows:
        shaded = "".join(
            f'<td class="heat" style="--lost:{lost * DARKEST:.0f}%" title="{escape(hover)}">'
            f"{escape(text)}</td>"
            if hover
            else f"<td>{escape(text)}</td>"
            for text, lost, hover in cells
        )
        body.append(f"<tr><td>{escape(name)}</td>{shaded}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
