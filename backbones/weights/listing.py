"""List the zoo as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from backbones.terminal import console

from .trained import TrainedModel
from .zoo import Score, Weights

WIDTH = 200  # characters, in a pipe or a file
# Field with the score of a task; weights without one are left out.
TASKS = {"detection": "coco", "segmentation": "ade20k", "classification": "imagenet"}


def select(
    chosen: Sequence[Weights], task: str | None, commercial_ok: bool, arch: str | None
) -> list[Weights]:
    """Return the weights that pass every filter; given a task, the best score first."""
    kept = [
        weights
        for weights in chosen
        if (not commercial_ok or weights.commercial) and arch in (None, weights.arch)
    ]
    if task is None:
        return kept
    field = TASKS[task]
    return sorted(
        (weights for weights in kept if getattr(weights, field) is not None),
        key=lambda weights: _score_value(getattr(weights, field)),
        reverse=True,
    )


def _score_value(score: Score | float) -> float:
    return score.value if isinstance(score, Score) else score


def everything(weights: Weights) -> dict:
    """Return all fields in JSON types; a score is {"value": ..., "method": ...}."""
    fields = asdict(weights) | {"commercial": weights.commercial}
    for name in ("coco", "ade20k"):
        if score := getattr(weights, name):
            fields[name] = score._asdict()
    return fields


def _in_words(score: Score | float | None) -> str:
    if isinstance(score, Score):
        return f"{score.value:.1f} {score.method}"
    return "" if score is None else f"{score:.1f}"


def print_one(weights: Weights) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in everything(weights).items():
        if value not in (None, ""):
            text = _in_words(getattr(weights, name)) if name in TASKS.values() else str(value)
            table.add_row(name, text)
    console(WIDTH).print(table)


def print_table(chosen: Sequence[Weights], total: int) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("net", no_wrap=True)
    table.add_column("px", justify="right")
    table.add_column("pretraining")
    table.add_column("ImageNet top-1", justify="right")
    table.add_column("COCO box AP")
    table.add_column("ADE20K mIoU")
    table.add_column("licence")
    for weights in chosen:
        table.add_row(
            weights.name,
            f"{weights.arch} {'V2' if weights.use_grn else 'V1'}",
            str(weights.resolution),
            weights.pretraining,
            *(_in_words(getattr(weights, name)) for name in ("imagenet", "coco", "ade20k")),
            weights.licence,
        )
    console(WIDTH).print(table)
    console(WIDTH).print(f"{len(chosen)} of {total}; convnext zoo NAME shows the details of one")


def described(model: TrainedModel) -> dict:
    """Return the fields of a trained model in JSON types."""
    names = ("name", "config", "publisher", "licence", "scores", "source", "sha256")
    return {name: getattr(model, name) for name in names}


def print_trained(models: Sequence[TrainedModel]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "published", "licence", "source"):
        table.add_column(column, no_wrap=column != "source", overflow="fold")
    for model in models:
        table.add_row(model.name, model.score_text, model.licence, model.source)
    console(WIDTH).print(table)
    console(WIDTH).print("A config's name alone stands for the first of its models.")
