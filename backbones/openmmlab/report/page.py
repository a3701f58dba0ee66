"""Reports as pages: one HTML file each, nothing loaded from anywhere, every name escaped."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .charts import Series, heat_map, line_chart, number
from .robustness import robustness_section

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NAMES = {
    "coco/bbox_mAP": "box AP", "coco/segm_mAP": "mask AP", "coco/boundary_mAP": "boundary AP",
    "mIoU": "mIoU", "boundary_mIoU": "boundary mIoU", "mAcc": "mean recall",
    "aAcc": "pixels right", "coco/bbox_mAP_50": "box AP50", "coco/bbox_mAP_75": "box AP75",
    "coco/segm_mAP_50": "mask AP50", "coco/segm_mAP_75": "mask AP75",
    "coco/bbox_mAP_s": "box AP small", "coco/bbox_mAP_m": "box AP medium",
    "coco/bbox_mAP_l": "box AP large", "coco/segm_mAP_s": "mask AP small",
    "coco/segm_mAP_m": "mask AP medium", "coco/segm_mAP_l": "mask AP large",
    "coco/boundary_mAP_50": "boundary AP50", "coco/boundary_mAP_75": "boundary AP75",
    "coco/boundary_mAP_s": "boundary AP small", "coco/boundary_mAP_m": "boundary AP medium",
    "coco/boundary_mAP_l": "boundary AP large",
}  # fmt: skip
MAIN = ("coco/bbox_mAP", "coco/segm_mAP", "coco/boundary_mAP", "mIoU", "boundary_mIoU")
KINDS = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
MATRIX = 20  # classes that a confusion matrix shows
TABLE = 30  # rows of the table of confusions
LINES = 8  # classes with a precision-recall curve of their own


def render(report: Mapping) -> str:
    """The page of one run.

    Args:
        report: what `report.json` holds.
    """
    run = report.get("run", {})
    training = report.get("training", {})
    evaluation = report.get("evaluation", {})
    config = report.get("config", {})
    sections = [
        ("training", "Training", _training(training)),
        ("classes", "Scores by class and size", _classes(evaluation)),
        ("precision", "Precision and recall", _precision_recall(evaluation)),
        ("robustness", "Corrupted images", _robustness(report.get("robustness") or {})),
        ("confusion", "Confusions", _confusion(evaluation)),
        ("pictures", "The worst images first", _wall(evaluation)),
        ("commands", "Go on from here", _commands(report)),
        ("config", "The experiment", _config(config)),
        ("environment", "Time, memory and versions", _environment(report)),
    ]
    sections = [section for section in sections if section[2]]
    title = str(run.get("name") or "run")
    parts = [f"<h1>{escape(title)}</h1>"]
    if config.get("claim"):
        parts.append(f'<p class="lead">{escape(config["claim"])}</p>')
    parts.append(f'<p class="note">{escape(_what_was_done(training, evaluation))}</p>')
    parts.append(_tiles(training, evaluation))
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    parts.append(f"<nav>{links}</nav>")
    for key, name, body in sections:
        parts.append(f'<section id="{key}"><h2>{escape(name)}</h2>{body}</section>')
    return _page(title, parts)


def compare(reports: Mapping[str, Mapping]) -> str:
    """A page with several runs side by side: scores, curves over each other, config differences.

    Args:
        reports: what their `report.json` hold, by the name that each run is to have.
    """
    names = list(reports)
    runs = list(reports.values())
    parts = [
        f"<h1>{len(runs)} runs side by side</h1>",
        f'<p class="lead">{escape(", ".join(names))}</p>',
    ]
    rows = [[NAMES.get(key, key), *values] for key, values in score_table(runs)]
    parts.append("<h2>Scores</h2>" + _table(["", *names], rows, best=True))
    rows = [[name, *cells] for name, cells in _cost_table(runs)]
    parts.append("<h2>Cost</h2>" + _table(["", *names], rows))

    charts = []
    curves = [run.get("training", {}).get("curves", {}) for run in runs]
    for key, label in (("loss", "loss"), ("lr", "highest learning rate"), ("time", "seconds")):
        lines = []
        for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
            values = curve.get("values", {})
            if key == "lr":
                columns = [v for k, v in values.items() if k.startswith("lr/")]
                y = [_largest(row) for row in zip(*columns, strict=True)]
            else:
                y = values.get(key, [])
            if y:
                y = _smooth(y) if key != "lr" else y
                lines.append(Series(name, curve["steps"], y, colour=i))
        title = {"time": "Seconds per iteration"}.get(key, label.capitalize())
        charts.append(line_chart(lines, title=title, x_label="iteration", y_label=label))
    keys = [key for key, _ in score_table(runs) if key in MAIN] or [
        key for key, _ in score_table(runs)
    ][:2]
    for key in keys:
        lines = []
        for i, (name, run) in enumerate(zip(names, runs, strict=True)):
            rows = run.get("training", {}).get("scores", [])
            x = [row["step"] for row in rows if key in row["figures"]]
            y = [row["figures"][key] for row in rows if key in row["figures"]]
            lines.append(Series(name, x, y, colour=i))
        label = NAMES.get(key, key)
        charts.append(
            line_chart(
                lines, title=f"{label} by iteration", x_label="iteration", y_label=label,
                markers=True,
            )
        )  # fmt: skip
    parts.append(f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>')

    rows = config_differences(runs)
    if rows:
        table = _table(["key", *names], rows, text=True)
    else:
        table = "<p>The resolved configs are the same.</p>"
    parts.append(f"<h2>Configs, where they differ</h2>{table}")

    classes, columns = _by_class(runs)
    if classes:
        rows = [[name, *(column.get(name) for column in columns)] for name in classes]
        parts.append("<h2>By class</h2>" + _table(["class", *names], rows, best=True, tall=True))
    return _page(f"{len(runs)} runs", parts)


def score_table(runs: Sequence[Mapping]) -> list[tuple[str, list[float | None]]]:
    """(metric, one value for each run) in the runs' own units, the main metrics first."""
    scores = [run.get("evaluation", {}).get("scores", {}) for run in runs]
    keys = list(dict.fromkeys([*MAIN, *(key for row in scores for key in row)]))
    rows = [(key, [row.get(key) for row in scores]) for key in keys]
    return [(key, values) for key, values in rows if any(v is not None for v in values)]


def main_metrics(scores: Mapping) -> list[str]:
    """Of the names in `scores` those that sum up a model; the first two where none is known."""
    return [key for key in MAIN if key in scores] or list(scores)[:2]


def config_differences(runs: Sequence[Mapping]) -> list[list[str]]:
    """Rows of key and one text for each run, for the keys on which they differ."""
    resolved = [run.get("config", {}).get("resolved", {}) for run in runs]
    keys = sorted({key for config in resolved for key in config})
    rows = [[key, *(config.get(key, "–") for config in resolved)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _what_was_done(training: Mapping, evaluation: Mapping) -> str:
    sentences = []
    if training:
        length = f"{number(training.get('iterations'))} iterations"
        if training.get("max_epochs"):
            length = f"{training['epochs']} of {training['max_epochs']} epochs, {length}"
        else:
            length = f"{length[:-11]} of {number(training.get('max_iterations'))} iterations"
        sentences.append(f"Trained for {length} in {_duration(training.get('seconds'))}.")
    if evaluation:
        place = f" after iteration {number(evaluation['step'])}" if evaluation.get("step") else ""
        of = f" of {evaluation['checkpoint']}" if evaluation.get("checkpoint") else ""
        images = f" on {number(evaluation['images'])} images" if evaluation.get("images") else ""
        what = str(evaluation.get("split", "evaluation")).capitalize()
        sentences.append(f"{what}{of}{place}{images}.")
    return " ".join(sentences)


def _tiles(training: Mapping, evaluation: Mapping) -> str:
    tiles = []
    scores = evaluation.get("scores", {})
    keys = [key for key in NAMES if key in scores][:6] or list(scores)[:6]
    for key in keys:
        tiles.append((NAMES.get(key, key), number(scores[key])))
    final = [v for v in training.get("curves", {}).get("values", {}).get("loss", []) if v]
    if final:
        tail = final[-max(1, len(final) // 20) :]
        tiles.append(("final loss", number(sum(tail) / len(tail))))
    if training.get("images_per_second"):
        tiles.append(("images/s in training", number(training["images_per_second"], 3)))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def _training(training: Mapping) -> str:
    curves = training.get("curves") or {}
    steps, values = curves.get("steps", []), curves.get("values", {})
    if not steps:
        return ""
    charts = []

    def chart(lines: list[Series], title: str, unit: str, **more: object) -> None:
        charts.append(line_chart(lines, title=title, x_label="iteration", y_label=unit, **more))

    if "loss" in values:
        noisy = Series("each point", steps, values["loss"], colour=0, faint=True)
        chart([noisy, Series("loss", steps, _smooth(values["loss"]), 0)], "Loss", "loss")
    scores = training.get("scores", [])
    keys = list(dict.fromkeys(key for row in scores for key in row["figures"]))
    keys = [key for key in MAIN if key in keys] or keys[:2]
    lines = [
        Series(
            NAMES.get(key, key),
            [row["step"] for row in scores if key in row["figures"]],
            [row["figures"][key] for row in scores if key in row["figures"]],
        )
        for key in keys
    ]
    if lines:
        names = " and ".join(line.name for line in lines)
        chart(lines, f"{names[0].upper()}{names[1:]} in validation", "score", markers=True)
    rates = {name: v for name, v in values.items() if name.startswith("lr/")}
    if rates:
        lines = _family([Series(name[3:], steps, column) for name, column in rates.items()])
        chart(lines, "Learning rate by parameter group", "learning rate")
    for title, members in _loss_groups([n for n in values if "loss" in n and n != "loss"]).items():
        lines = [Series(short, steps, _smooth(values[name])) for name, short in members]
        chart(lines, title, "loss", legend_of_one=True)
    accuracies = [name for name in values if "acc" in name]
    if accuracies:
        lines = [Series(name, steps, _smooth(values[name])) for name in accuracies]
        chart(lines, "Accuracy in training", "per cent", legend_of_one=True)
    if any(values.get("grad_norm", [])):
        line = Series("norm", steps, _smooth(values["grad_norm"]))
        chart([line], "Norm of the gradient", "norm", log=True)
    if "time" in values:
        lines = [Series("iteration", steps, values["time"])]
        if "data_time" in values:
            lines.append(Series("of it waiting for data", steps, values["data_time"]))
        known = sorted(v for line in lines for v in line.y if v is not None)
        # The first iterations, which warm up, may leave the chart.
        highest = 1.15 * known[int(0.99 * (len(known) - 1))] if known else 1.0
        chart(lines, "Seconds per iteration", "seconds", y_limits=(0.0, highest or 1.0))
    note = "Lines are means over neighbouring points; the faint one shows the points."
    if curves.get("stride", 1) > 1:
        note += f" A point is the mean of {curves['stride']} iterations."
    return f'<div class="charts">{"".join(charts)}</div><p class="note">{note}</p>'


def _family(lines: list[Series]) -> list[Series]:
    """Many lines in an order as shades of one colour; the legend names the ends."""
    last = len(lines) - 1
    if last < LINES:
        return lines
    for i, line in enumerate(lines):
        line.colour, line.strength = 0, 0.25 + 0.75 * i / last
        line.named = i in (0, last)
    return lines


def _loss_groups(names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Parts of the loss by chart: (name, short name) by title; RPN, each stage, each head."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        head, dot, part = name.rpartition(".")
        if dot and head[:1] == "s" and head[1:].isdigit():
            title = f"Losses of stage {int(head[1:]) + 1}"
        elif dot:
            title = f"Losses of the {head.replace('_', ' ').replace('aux', 'auxiliary head')}"
            title = title.replace("decode", "decode head")
        else:
            title, part = "Losses of the RPN" if "rpn" in name else "Parts of the loss", name
        groups.setdefault(title, []).append((name, part))
    return groups


def _classes(evaluation: Mapping) -> str:
    rows = evaluation.get("per_class") or []
    if not rows:
        return ""
    if evaluation.get("task") == "segmentation":
        order = sorted(rows, key=lambda row: (row["IoU"] is None, row["IoU"] or 0))
        header = ["class", "IoU", "boundary IoU", "recall", "precision"]
        if not any("boundary IoU" in row for row in rows):
            header.remove("boundary IoU")
        body = [
            [row["name"], *(_share(row.get(c)) for c in header[1:]), _share(row["pixels"], 2)]
            for row in order
        ]
        header.append("of all pixels")
        return (
            '<p class="note">The worst class first; per cent over all pixels of the set.</p>'
            + _table(header, body, tall=True)
        )
    parts = []
    kinds = [kind for kind in KINDS if kind in (evaluation.get("sizes") or {})]
    if kinds:
        header = ["AP", "all", "small", "medium", "large"]
        body = [
            [KINDS[kind], *(_fixed(evaluation["sizes"][kind][size]) for size in header[1:])]
            for kind in kinds
        ]
        parts.append("<h3>By size</h3>" + _table(header, body))
        parts.append(
            '<p class="note">Small is below 32², large above 96² pixels; – where the set has no '
            "such object.</p>"
        )
    columns = ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    header = ["class", "objects"]
    for kind in kinds:
        header += [f"{KINDS[kind]} {column}" for column in columns]

    def first(row: Mapping) -> tuple:
        ap = (row.get(kinds[0]) or {}).get("AP") if kinds else None
        return (ap is None, ap or 0)

    body = [
        [row["name"], row["objects"],
         *(_fixed((row.get(kind) or {}).get(c)) for kind in kinds for c in columns)]
        for row in sorted(rows, key=first)
    ]  # fmt: skip
    parts.append("<h3>By class, the worst first</h3>" + _table(header, body, tall=True))
    return "".join(parts)


def _precision_recall(evaluation: Mapping) -> str:
    curves = evaluation.get("precision_recall") or {}
    classes = evaluation.get("classes", [])
    recalls = [i / 100 for i in range(101)]
    charts = []
    for kind, of_kind in curves.items():
        axes = dict(x_label="recall", y_label="precision", y_limits=(0.0, 1.0))
        lines = [Series(name, recalls, values) for name, values in of_kind["mean"].items()]
        charts.append(line_chart(lines, title=f"{KINDS[kind].capitalize()}, all classes", **axes))
        present = [row for row in of_kind["classes"] if any(v is not None for v in row[1])]
        ranked = sorted(present, key=lambda row: sum(v or 0 for v in row[1]))
        lines = [Series(classes[label], recalls, values) for label, values in ranked[:LINES]]
        some = "each class" if len(ranked) <= LINES else f"the {LINES} worst classes"
        title = f"{KINDS[kind].capitalize()}, {some}, IoU 0.50"
        charts.append(line_chart(lines, title=title, **axes))
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _robustness(record: Mapping) -> str:
    return robustness_section(record, NAMES, main_metrics(record.get("clean") or {}))


def _confusion(evaluation: Mapping) -> str:
    triples = evaluation.get("confusion") or []
    names = list(evaluation.get("classes", []))
    if not triples:
        return ""
    detection = evaluation.get("task") == "detection"
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
    if detection:
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
    unit = "objects" if detection else "pixels"
    title = "Per cent of each row" + (
        "" if count <= MATRIX else f", {MATRIX} most confused classes"
    )
    matrix = heat_map(
        [labels[i] for i in rows], [labels[j] for j in rows], shares, hovers,
        title=title, x_label="predicted", y_label="true",
    )  # fmt: skip
    body = [
        [labels[i], labels[j], f"{n:,}", f"{n / totals[i]:.1%}"]
        for i, j, n in sorted(wrong, key=lambda row: -row[2])[:TABLE]
    ]
    note = (
        "Detections of score 0.3 and more; one is taken for the object that it overlaps by an IoU "
        "of 0.5 or more, first within its class, then across. An object that becomes nothing is "
        "missed; a detection of nothing is false."
        if detection
        else "Over all pixels with a label."
    )
    table = _table(["true", "predicted", unit, "of the true"], body, tall=True)
    return (
        f'<p class="note">{note}</p><div class="beside">{matrix}<figure><figcaption>Most frequent'
        f"</figcaption>{table}</figure></div>"
    )


def _wall(evaluation: Mapping) -> str:
    pictures = evaluation.get("pictures") or []
    detection = evaluation.get("task") == "detection"
    cards = []
    for picture in pictures:
        pair = "".join(
            f'<div><img loading="lazy" alt="{label} of {escape(picture["file"])}" '
            f'src="{escape(picture[key])}"><span>{label}</span></div>'
            for key, label in (("truth", "ground truth"), ("prediction", "prediction"))
            if str(picture.get(key, "")).startswith("data:image/")
        )
        name = "F1" if detection else "mIoU"
        caption = f"{picture['file']}: {name} {_fixed(picture['score'], 2)}, {picture['note']}"
        cards.append(
            f"<figure><figcaption>{escape(caption)}</figcaption>"
            f'<div class="pair">{pair}</div>{_key(evaluation, picture)}</figure>'
        )
    if not cards:
        return ""
    what = (
        "F1 is that of the detections of score 0.3 and more at an IoU of 0.5."
        if detection
        else "mIoU is that of the classes in the image's ground truth."
    )
    total = number(evaluation.get("images"))
    return (
        f'<p class="note">{len(cards)} of {total} images. {what}</p>'
        f'<div class="wall">{"".join(cards)}</div>'
    )


def _key(evaluation: Mapping, picture: Mapping) -> str:
    """The colours of the classes in a label map."""
    names, colours = evaluation.get("classes", []), evaluation.get("colours", [])
    items = [
        f'<li><i class="key" style="--c:{colours[i]}"></i>{escape(names[i])}</li>'
        for i in picture.get("classes", [])
        if re.fullmatch("#[0-9a-f]{6}", colours[i])
    ]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _commands(report: Mapping) -> str:
    rows = report.get("commands") or []
    if not rows:
        return ""
    folder = report.get("run", {}).get("folder", "")
    parts = [f'<p class="note">To be run in <code>{escape(folder)}</code></p>']
    for row in rows:
        parts.append(
            f"<h3>{escape(row['what'])}</h3><pre class=command>{escape(row['command'])}</pre>"
        )
    return "".join(parts)


def _config(config: Mapping) -> str:
    parts = []
    if config.get("text") and config.get("has_bases"):
        parts.append(f"<pre>{escape(config['text'].strip())}</pre>")
    rows = [
        [
            c["key"],
            "–" if c["base"] is None else c["base"],
            "–" if c["value"] is None else c["value"],
        ]
        for c in config.get("changes", [])
    ]
    if rows and config.get("has_bases"):
        parts.append(
            "<h3>What it changes against its bases</h3><p class='note'>With --cfg-options, --data "
            "and what the machine cannot run.</p>"
        )
        parts.append(_table(["key", "base", "here"], rows, text=True, tall=True))
    resolved = config.get("resolved", {})
    if resolved:
        lines = "\n".join(f"{key} = {value}" for key, value in resolved.items())
        parts.append(
            f'<details><summary>All {len(resolved)} settings</summary><pre class="tall">'
            f"{escape(lines)}</pre></details>"
        )
    return "".join(parts)


def _environment(report: Mapping) -> str:
    training, evaluation = report.get("training", {}), report.get("evaluation", {})
    rows = []
    if training:
        rows += [[name, value] for name, (value,) in _cost_table([report])]
        rows.append(["seed", training.get("seed")])
        rows.append(["processes", training.get("processes")])
    if evaluation.get("seconds") is not None:
        rows.append([f"{evaluation.get('split')} time", _duration(evaluation["seconds"])])
        rows.append(["evaluated on", evaluation.get("data")])
    rows += [[name, value] for name, value in report.get("environment", {}).items()]
    return _table(["", ""], rows, text=True)


def _cost_table(runs: Sequence[Mapping]) -> list[tuple[str, list[str]]]:
    rows: dict[str, list[str]] = {}
    for run in runs:
        training = run.get("training", {})
        cells = {
            "training time": _duration(training.get("seconds")),
            "iterations": number(training.get("iterations")),
            "images per iteration": number(training.get("batch_size")),
            "seconds per iteration, median": number(training.get("seconds_per_iteration"), 3),
            "images/s": number(training.get("images_per_second"), 3),
            "peak memory": _memory(training.get("peak_memory_mib")),
            "parameters": _millions(training.get("parameters")),
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return list(rows.items())


def _by_class(runs: Sequence[Mapping]) -> tuple[list[str], list[dict[str, float | None]]]:
    """Class names and each run's IoU or box AP by class."""
    columns = []
    for run in runs:
        column = {}
        for row in run.get("evaluation", {}).get("per_class") or []:
            value = row.get("IoU", (row.get("bbox") or {}).get("AP"))
            column[row["name"]] = value
        columns.append(column)
    return list(dict.fromkeys(name for column in columns for name in column)), columns


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    text: bool = False,
    tall: bool = False,
    best: bool = False,
) -> str:
    """A table in a box of its own that scrolls; numbers to the right, or everything to the left."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in header)
    body = []
    for row in rows:
        values = [v for v in row[1:] if isinstance(v, float | int)] if best else []
        highest = max(values) if len(values) > 1 and max(values) > min(values) else None
        cells = []
        for i, value in enumerate(row):
            shown = _fixed(value) if isinstance(value, float) or value is None else str(value)
            kind = " class=wrap" if text and i else ""
            if i and highest is not None and value == highest:
                kind = " class=best"
            cells.append(f"<td{kind}>{escape(shown)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    box = "scroll tall" if tall and len(rows) > 12 else "scroll"
    kind = ' class="text"' if text else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="{box}"><table{kind}>{head}<tbody>{"".join(body)}</tbody></table></div>'


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """Means over a fiftieth of the points around each."""
    half = len(values) // 100
    smooth: list[float | None] = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        smooth.append(None if value is None else sum(near) / len(near))
    return smooth


def _largest(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value * 100:.{digits}f}"


def _millions(count: int | None) -> str:
    return "–" if not count else f"{count / 1e6:.1f} M"


def _memory(mib: float | None) -> str:
    return "–" if not mib else f"{mib / 1024:.1f} GiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
