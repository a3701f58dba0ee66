"""Publish a trained model as a folder: weights, config, model card and an entry for the zoo."""

import ast
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from backbones.architectures import ARCHITECTURES
from backbones.atomic_write import write_atomically
from backbones.checksums import sha256_of
from backbones.errors import InputError
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.data.metainfo import class_names, dataset_metainfo
from backbones.openmmlab.registration import enter_scope
from backbones.openmmlab.tasks import module_at, task_of
from backbones.weights import (
    Score,
    Weights,
    load_strictly,
    read_checkpoint,
    state_dict,
    write_checkpoint,
    zoo,
)

from .model_card import model_card, public_dataset, without_folders


@dataclass(frozen=True)
class Published:
    """Hold the results of `publish`.

    Attributes:
        folder: folder with everything in it.
        weights: the file of weights.
        lines: a report of weights, licence and scores.
    """

    folder: Path
    weights: Path
    lines: tuple[str, ...]


def publish(
    config: Config,
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    metrics: str | os.PathLike | None = None,
    licence: str | None = None,
) -> Published:
    """Write a folder with a checkpoint's weights alone and everything needed to use them.

    The weights are those that the model evaluates with: the EMA where there is one.

    Args:
        config: a validated config; written out as it is.
        checkpoint: anything `read_checkpoint` reads.
        folder: must not exist; it appears complete or not at all.
        name: name of the model; the config's name if None.
        metrics: what tools/test.py wrote for this checkpoint; metrics.json beside it if None.
        licence: licence of the weights, if their pretrained weights bring none.

    Raises:
        InputError: the checkpoint does not fit this config's model, a file cannot be read or
            written, or the licence contradicts that of the pretrained weights.
    """
    folder, name = Path(folder), name or Path(config.filename).stem
    if folder.exists():
        raise InputError(
            f"{folder}: exists already; choose another folder", code="bad-argument", where=folder
        )
    content = read_checkpoint(checkpoint)
    model, averaged = _model(config, content, checkpoint)
    recipe = _recipe(content)
    sources = _pretrained(recipe or config.pretty_text)
    inherited = {source: zoo.licence_of(source) for source in sources}
    licence = _licence(licence, inherited)
    scores, why_unknown = _scores(checkpoint, metrics)

    part = folder.with_name(f".{folder.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir()
        path, digest = _write_weights(model, part, name)
        config.work_dir = None
        write_atomically(part / "config.py", config.pretty_text)
        if recipe:
            write_atomically(part / "recipe.py", recipe)
        entry = _zoo_entry(config, model, name, path.name, digest, licence, sources, scores)
        write_atomically(part / zoo.PUBLISHED, json.dumps(asdict(entry), indent=1) + "\n")
        card = model_card(
            config,
            model,
            entry,
            _classes(config) or (),
            inherited,
            scores,
            why_unknown,
            averaged=averaged,
            has_recipe=bool(recipe),
        )
        write_atomically(part / "README.md", card)
        part.replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error})",
            code="write-failed",
            where=folder,
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    path = folder / path.name
    lines = [f"weights: {path}" + (", the EMA" if averaged else "")]
    lines.append(f"licence: {licence or 'not stated'}")
    lines.append(f"scores: {'unknown, ' + why_unknown if why_unknown else len(scores)}")
    return Published(folder, path, tuple(lines))


def _model(
    config: Config, content: Mapping, checkpoint: str | os.PathLike
) -> tuple[nn.Module, bool]:
    """Return the config's model with the weights to publish, and whether they are an EMA."""
    config.setdefault("launcher", "none")
    fitted = deepcopy(config)
    fit_to_machine(fitted)
    enter_scope(task_of(config).scope)
    known = class_names(content)
    classes = _classes(config)
    if known and classes and known != classes:
        raise InputError(
            f"{checkpoint}: was trained on the classes {', '.join(known[:3])}, ...; those of "
            f"{config.filename} are {', '.join(classes[:3])}, ...",
            code="class-mismatch",
            where=checkpoint,
        )
    model = MODELS.build(fitted.model)
    # The official code saves the EMA beside the weights; mmengine and our hook save it in their
    # place, and the trained weights as `ema_state_dict`.
    beside = "model_ema" in content
    tensors = state_dict(content, checkpoint, "model_ema" if beside else None)
    load_strictly(model, tensors, checkpoint)
    return model, beside or "ema_state_dict" in content


def _write_weights(model: nn.Module, folder: Path, name: str) -> tuple[Path, str]:
    """Write the model's tensors under a name that ends in the first digits of their checksum."""
    tensors = {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
    unnamed = folder / "weights.safetensors"
    write_checkpoint(tensors, unnamed, wrapper=None, safetensors=True)
    digits = sha256_of(unnamed)
    path = unnamed.with_name(f"{name}-{digits[:8]}.safetensors")
    unnamed.rename(path)
    return path, digits


def _recipe(content: Mapping) -> str | None:
    """Return the config that mmengine saved in the checkpoint."""
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    return text if isinstance(text, str) and text.strip() else None


def _pretrained(recipe: str) -> tuple[str, ...]:
    """Return the checkpoints that a config's text starts from; it is parsed, never run.

    A resumed run's `load_from` is its own checkpoint.
    """
    try:
        tree = ast.parse(recipe)
    except SyntaxError:
        return ()
    found: dict[str, None] = {}
    resumed = any(
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "resume"
        and getattr(node.value, "value", None) is True
        for node in tree.body
    )
    keys = ("checkpoint", "init_from") if resumed else ("checkpoint", "init_from", "load_from")
    for node in ast.walk(tree):
        named: list[tuple[Any, ast.expr]] = []
        if isinstance(node, ast.Call):
            named = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            named = [
                (key.value if isinstance(key, ast.Constant) else None, value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named = [(node.targets[0].id, node.value)]
        for key, value in named:
            if key in keys and isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[value.value] = None
    return tuple(found)


def _licence(given: str | None, inherited: Mapping[str, str | None]) -> str | None:
    """Return the licence of the weights: that of their pretrained weights, else the given one."""
    known = [licence for licence in inherited.values() if licence]
    # A licence that forbids commercial use stays with everything made from the weights.
    strictest = min(known, key=lambda licence: bool(zoo.LICENCES.get(licence)), default=None)
    if given and strictest and not zoo.LICENCES.get(strictest) and given != strictest:
        raise InputError(
            f"--licence {given}: the weights derive from weights under {strictest}, which "
            "applies to them too",
            code="bad-argument",
            where="--licence",
        )
    return given or strictest


def _scores(
    checkpoint: str | os.PathLike, metrics: str | os.PathLike | None
) -> tuple[dict[str, float], str]:
    """Return the figures of a metrics file by name, and why there are none."""
    path = Path(metrics) if metrics else Path(checkpoint).parent / "metrics.json"
    if not path.is_file():
        if metrics:
            raise InputError(f"{path}: no such metrics file", code="not-found", where=path)
        return {}, f"there is no {path.name} beside the checkpoint"
    if not metrics and path.stat().st_mtime < Path(checkpoint).stat().st_mtime:
        return {}, f"{path.name} is older than the checkpoint; pass --metrics to use it anyway"
    try:
        figures = json.loads(path.read_text())
        found = {str(k): float(v) for k, v in figures.items() if math.isfinite(float(v))}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a metrics file of tools/test.py ({error})",
            code="broken-file",
            where=path,
        ) from None
    return found, "" if found else f"{path.name} holds no figures"


def _classes(config: Config) -> tuple[str, ...] | None:
    """Return the class names of the config's test data; None if only its folder states them."""
    loader = config.get("test_dataloader") or config.get("train_dataloader")
    if loader is None:
        return None
    try:
        names = dataset_metainfo(loader.dataset, task_of(config).scope).get("classes")
    except InputError:
        return None
    return tuple(names) if names else None


def _zoo_entry(
    config: Config,
    model: nn.Module,
    name: str,
    file: str,
    digest: str,
    licence: str | None,
    sources: Sequence[str],
    scores: Mapping[str, float],
) -> Weights:
    """Return the folder as an entry of the zoo; None for unknown fields."""
    backbone = module_at(model, task_of(config).backbone) or model
    shape = (tuple(getattr(backbone, "depths", ())), tuple(getattr(backbone, "dims", ())))
    known = (n for n, a in ARCHITECTURES.items() if (a["depths"], a["dims"]) == shape)
    before = [_pretraining(source) for source in sources]
    public = public_dataset(config)
    own = public.name if public else "own data"
    loader = config.get("test_dataloader")
    steps = () if loader is None else loader.dataset.get("pipeline", ())
    sides = [min(s["scale"]) for s in steps if s["type"] == "Resize" and "scale" in s]
    entry = Weights(
        name,
        next(known, type(backbone).__name__),
        any(key.endswith("grn.gamma") for key in model.state_dict()),
        ", ".join([*before, own]),
        sides[0] if sides else 0,
        file,
        licence or zoo.UNSTATED,
        digest,
        note=f"{type(model).__name__}, published by tools/publish.py",
    )
    metric = task_of(config).metric(public.metric) if public else None
    if public and metric and metric.key in scores:
        percent = scores[metric.key] * 100 / metric.best
        score = Score(round(percent, 2), f"{type(model).__name__}, tools/test.py")
        entry = replace(entry, **{public.zoo_field: score})
    return entry


def _pretraining(source: str) -> str:
    """Return the pretraining of a checkpoint, as the zoo states it, or its name."""
    try:
        return zoo.find(source).pretraining
    except InputError:
        return without_folders(source)
