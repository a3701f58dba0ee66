"""Arrange the contents of a run's `report.json` for the template of its page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from backbones.openmmlab.tasks import ReportLayout

from .charts import Series, heat_map, line_chart, number
from .metrics import Metrics
from .robustness import robustness_view
from .tables import Table, cost_rows, duration, fixed, share, table
from .templating import fill

MATRIX = 20  # classes that a confusion matrix shows
ROWS = 30  # of the table of confusions
LINES = 8  # classes with a precision-recall curve of their own
TILES = 6  # scores at the top of the page


@dataclass(frozen=True)
class Section:
    """Describe a part of the page: its macro's name in the template, its heading and its data."""

    key: str
    title: str
    view: Mapping | None


def render(report: Mapping) -> str:
    """Return the page of one run as HTML.

    Args:
        report: what `report.json` holds.
    """
    training = report.get("training", {})
    evaluation = report.get("evaluation", {})
    config = report.get("config", {})
    layout = _layout(report)
    metrics = Metrics([report])
    sections = [
        Section("training", "Training", _training(training, metrics)),
        Section("classes", "Scores by class and size", _classes(evaluation, layout)),
        Section("precision", "Precision and recall", _precision_recall(evaluation)),
        Section(
            "robustness",
            "Corrupted images",
            robustness_view(report.get("robustness") or {}, metrics),
        ),
        Section("confusion", "Confusions", _confusion(evaluation, layout)),
        Section("pictures", "Worst images", _images(evaluation, layout)),
        Section("commands", "Continue from here", _commands(report)),
        Section("config", "The experiment", _config(config)),
        Section("environment", "Time, memory and versions", _environment(report)),
    ]
    return fill(
        "report.html",
        title=str(report.get("run", {}).get("name") or "run"),
        claim=config.get("claim"),
        summary=_summary(training, evaluation),
        tiles=_tiles(training, evaluation, metrics),
        shown=[section for section in sections if section.view],
    )


def _layout(report: Mapping) -> ReportLayout:
    """Return the layout that the report holds; reports of earlier versions hold none."""
    stored = report.get("layout") or {}
    known = [field.name for field in fields(ReportLayout)]
    return ReportLayout(**{name: stored[name] for name in known if name in stored})


def _summary(training: Mapping, evaluation: Mapping) -> str:
    sentences = []
    if training:
        length = f"{number(training.get('iterations'))} iterations"
        if training.get("max_epochs"):
            length = f"{training['epochs']} of {training['max_epochs']} epochs, {length}"
        else:
            length = f"{length[:-11]} of {number(training.get('max_iterations'))} iterations"
        sentences.append(f"Trained for {length} in {duration(training.get('seconds'))}.")
    if evaluation:
        place = f" after iteration {number(evaluation['step'])}" if evaluation.get("step") else ""
        of = f" of {evaluation['checkpoint']}" if evaluation.get("checkpoint") else ""
        images = f" on {number(evaluation['images'])} images" if evaluation.get("images") else ""
        what = str(evaluation.get("split", "evaluation")).capitalize()
        sentences.append(f"{what}{of}{place}{images}.")
    return " ".join(sentences)


def _tiles(training: Mapping, evaluation: Mapping, metrics: Metrics) -> list[tuple[str, str]]:
    scores = evaluation.get("scores", {})
    tiles = [
        (metrics.name(key), number(metrics.known(key, scores[key])))
        for key in metrics.overview(scores, TILES)
    ]
    final = [v for v in training.get("curves", {}).get("values", {}).get("loss", []) if v]
    if final:
        tail = final[-max(1, len(final) // 20) :]
        tiles.append(("final loss", number(sum(tail) / len(tail))))
    if training.get("images_per_second"):
        tiles.append(("images/s in training", number(training["images_per_second"], 3)))
    return tiles


def _training(training: Mapping, metrics: Metrics) -> dict | None:
    curves = training.get("curves") or {}
    steps, values = curves.get("steps", []), curves.get("values", {})
    if not steps:
        return None
    charts = []

    def chart(lines: list[Series], title: str, unit: str, **more) -> None:
        charts.append(line_chart(lines, title=title, x_label="iteration", y_label=unit, **more))

    if "loss" in values:
        noisy = Series("each point", steps, values["loss"], colour=0, faint=True)
        chart([noisy, Series("loss", steps, smooth(values["loss"]), 0)], "Loss", "loss")
    scores = training.get("scores", [])
    keys = list(dict.fromkeys(key for row in scores for key in row["figures"]))
    lines = []
    shown = metrics.main(keys)
    for key in shown:
        rows = [row for row in scores if key in row["figures"]]
        y = [metrics.known(key, row["figures"][key]) for row in rows]
        lines.append(Series(metrics.name(key), [row["step"] for row in rows], y))
    if shown:
        names = " and ".join([metrics.title(shown[0]), *map(metrics.name, shown[1:])])
        chart(lines, f"{names} in validation", "score", markers=True)
    rates = {name: v for name, v in values.items() if name.startswith("lr/")}
    if rates:
        lines = _family([Series(name[3:], steps, column) for name, column in rates.items()])
        chart(lines, "Learning rate by parameter group", "learning rate")
    for title, members in _loss_groups([n for n in values if "loss" in n and n != "loss"]).items():
        lines = [Series(short, steps, smooth(values[name])) for name, short in members]
        chart(lines, title, "loss", legend_of_one=True)
    accuracies = [name for name in values if "acc" in name]
    if accuracies:
        lines = [Series(name, steps, smooth(values[name])) for name in accuracies]
        chart(lines, "Accuracy in training", "per cent", legend_of_one=True)
    if any(values.get("grad_norm", [])):
        line = Series("norm", steps, smooth(values["grad_norm"]))
        chart([line], "Gradient norm", "norm", log=True)
    if "time" in values:
        lines = [Series("iteration", steps, values["time"])]
        if "data_time" in values:
            lines.append(Series("waiting for data", steps, values["data_time"]))
        known = sorted(v for line in lines for v in line.y if v is not None)
        # The first iterations, which warm up, may leave the chart.
        highest = 1.15 * known[int(0.99 * (len(known) - 1))] if known else 1.0
        chart(lines, "Seconds per iteration", "seconds", y_limits=(0.0, highest or 1.0))
    return dict(charts=charts, stride=curves.get("stride", 1))


def _family(lines: list[Series]) -> list[Series]:
    """Shade many ordered lines in one colour; the legend names the first and the last."""
    last = len(lines) - 1
    if last < LINES:
        return lines
    for i, line in enumerate(lines):
        line.colour, line.strength = 0, 0.25 + 0.75 * i / last
        line.named = i in (0, last)
    return lines


def _loss_groups(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Group the parts of the loss by the prefix of their names: (name, short name) by title.

    OpenMMLab's heads put a prefix and a dot before theirs (`s0.loss_cls` of a cascade's first
    stage, `decode.loss_ce`), or a word after `loss_` (`loss_rpn_cls`).
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        prefix, dot, short = name.rpartition(".")
        if not dot:
            word = re.fullmatch(r"loss_([a-z0-9]+)_.+", name)
            prefix, short = (word[1] if word else ""), name
        title = f"Losses: {prefix}" if prefix else "Parts of the loss"
        groups.setdefault(title, []).append((name, short))
    return groups


def _classes(evaluation: Mapping, layout: ReportLayout) -> dict | None:
    rows = evaluation.get("per_class") or []
    if not rows or not layout.class_scores:
        return None
    sizes = evaluation.get("sizes") or {}
    names = evaluation.get("kinds") or {kind: kind for kind in sizes}
    by_size = None
    if sizes:
        header = ["all", "small", "medium", "large"]
        body = [
            [names[kind], *(fixed(of_kind[size]) for size in header)]
            for kind, of_kind in sizes.items()
        ]
        by_size = table(["AP", *header], body)

    def scores(row: Mapping, kind: str | None) -> Mapping:
        return row if kind is None else row.get(kind) or {}

    columns = [
        (kind, key)
        for kind in list(sizes) or [None]
        for key in layout.class_scores
        if any(key in scores(row, kind) for row in rows)
    ]

    def worst(row: Mapping) -> tuple:
        score = scores(row, columns[0][0]).get(columns[0][1]) if columns else None
        return (score is None, score or 0)

    shown = share if layout.per_cent else fixed
    body = [
        [
            row["name"],
            share(row[layout.class_count], 2) if layout.per_cent else row[layout.class_count],
            *(shown(scores(row, kind).get(key)) for kind, key in columns),
        ]
        for row in sorted(rows, key=worst)
    ]
    titles = [key if kind is None else f"{names[kind]} {key}" for kind, key in columns]
    by_class = table(["class", layout.class_count, *titles], body, tall=True)
    return dict(by_size=by_size, by_class=by_class, note=layout.class_note)


def _precision_recall(evaluation: Mapping) -> dict | None:
    classes = evaluation.get("classes", [])
    names = evaluation.get("kinds") or {}
    recalls = [i / 100 for i in range(101)]
    charts = []
    for kind, of_kind in (evaluation.get("precision_recall") or {}).items():
        name = names.get(kind, kind).capitalize()
        axes: dict[str, Any] = dict(x_label="recall", y_label="precision", y_limits=(0.0, 1.0))
        lines = [Series(label, recalls, values) for label, values in of_kind["mean"].items()]
        charts.append(line_chart(lines, title=f"{name}, all classes", **axes))
        present = [row for row in of_kind["classes"] if any(v is not None for v in row[1])]
        ranked = sorted(present, key=lambda row: sum(v or 0 for v in row[1]))
        lines = [Series(classes[label], recalls, values) for label, values in ranked[:LINES]]
        some = "each class" if len(ranked) <= LINES else f"the {LINES} worst classes"
        charts.append(line_chart(lines, title=f"{name}, {some}, IoU 0.50", **axes))
    return dict(charts=charts) if any(charts) else None


def _confusion(evaluation: Mapping, layout: ReportLayout) -> dict | None:
    triples = evaluation.get("confusion") or []
    names = list(evaluation.get("classes", []))
    if not triples:
        return None
    count = len(names)
    totals: dict[int, int] = {}
    for i, _, n in triples:
        totals[i] = totals.get(i, 0) + n
    wrong = [(i, j, n) for i, j, n in triples if i != j]
    involved: dict[int, float] = {}
    for i, j, n in wrong:
        for label in (i, j):
            if label < count and i < count:
                involved[label] = involved.get(label, 0) + n / totals[i]
    ranked = sorted(range(count), key=lambda k: -involved.get(k, 0))
    shown = sorted(ranked[:MATRIX])
    rows = list(shown)
    if layout.background:
        rows.append(count)
    labels = [*names, "nothing"]
    cells = {(i, j): n for i, j, n in triples}
    shares, hovers = [], []
    for i in rows:
        total = sum(cells.get((i, j), 0) for j in range(count + 1))
        shares.append([cells.get((i, j), 0) / total if total else 0.0 for j in rows])
        hovers.append(
            [f"{labels[i]} as {labels[j]}: {cells.get((i, j), 0):,} of {total:,}" for j in rows]
        )
    title = "Per cent of each row" + (
        "" if count <= MATRIX else f", {MATRIX} most confused classes"
    )
    matrix = heat_map(
        [labels[i] for i in rows], [labels[j] for j in rows], shares, hovers,
        title=title, x_label="predicted", y_label="true",
    )  # fmt: skip
    body = [
        [labels[i], labels[j], f"{n:,}", f"{n / totals[i]:.1%}"]
        for i, j, n in sorted(wrong, key=lambda row: -row[2])[:ROWS]
    ]
    rows_of = table(["true", "predicted", layout.confusion_unit, "share of true"], body, tall=True)
    return dict(note=layout.confusion_note, matrix=matrix, table=rows_of)


def _images(evaluation: Mapping, layout: ReportLayout) -> dict | None:
    rows = evaluation.get("pictures") or []
    score = evaluation.get("image_score", layout.image_score)
    images = [
        dict(
            file=row["file"],
            caption=f"{row['file']}: {score} {fixed(row['score'], 2)}, {row['note']}",
            pair=[
                (name, row[key])
                for key, name in (("truth", "ground truth"), ("prediction", "prediction"))
                if str(row.get(key, "")).startswith("data:image/")
            ],
            legend=_legend(evaluation, row),
        )
        for row in rows
    ]
    if not images:
        return None
    note = evaluation.get("image_note", layout.image_note)
    return dict(images=images, total=number(evaluation.get("images")), note=note)


def _legend(evaluation: Mapping, image: Mapping) -> list[tuple[str, str]]:
    """Return names and colours of the classes in a label map."""
    names, colours = evaluation.get("classes", []), evaluation.get("colours", [])
    return [
        (names[i], colours[i])
        for i in image.get("classes", [])
        if re.fullmatch("#[0-9a-f]{6}", colours[i])
    ]


def _commands(report: Mapping) -> dict | None:
    rows = report.get("commands") or []
    return dict(rows=rows, folder=report.get("run", {}).get("folder", "")) if rows else None


def _config(config: Mapping) -> dict | None:
    if not config.get("resolved"):
        return None
    based = config.get("has_bases")
    rows = [
        [c["key"], *("–" if c[side] is None else c[side] for side in ("base", "value"))]
        for c in config.get("changes", [])
    ]
    return dict(
        text=config.get("text", "").strip() if based else "",
        changes=table(["key", "base", "here"], rows, text=True, tall=True)
        if rows and based
        else None,
        settings=config["resolved"],
    )


def _environment(report: Mapping) -> dict[str, Table]:
    training, evaluation = report.get("training", {}), report.get("evaluation", {})
    rows: list[list] = []
    if training:
        rows += [[name, value] for name, (value,) in cost_rows([report])]
        rows.append(["seed", training.get("seed")])
        rows.append(["ranks", training.get("processes")])
    if evaluation.get("seconds") is not None:
        rows.append([f"{evaluation.get('split')} time", duration(evaluation["seconds"])])
        rows.append(["evaluated on", evaluation.get("data")])
    rows += [[name, value] for name, value in report.get("environment", {}).items()]
    return dict(table=table(["", ""], rows, text=True))


def smooth(values: Sequence[float | None]) -> list[float | None]:
    """Average over a window of a fiftieth of the points around each."""
    half = len(values) // 100
    means: list[float | None] = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        means.append(None if value is None else sum(near) / len(near))
    return means
