"""A trained model as a folder to hand on: weights, config, model card, what the zoo reads of it."""

import ast
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from backbones.architectures import ARCHITECTURES
from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.data.metainfo import class_names, dataset_metainfo
from backbones.openmmlab.registration import enter_scope
from backbones.weights import (
    Score,
    Weights,
    load_strictly,
    read_checkpoint,
    state_dict,
    write_checkpoint,
    zoo,
)

# What the hub calls a licence of ours; others are "other" with their name.
HUB_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC-BY-NC-4.0": "cc-by-nc-4.0"}
# The task of a config's scope and its name on the hub.
TASKS = {
    "mmdet": ("detection", "object-detection"),
    "mmseg": ("segmentation", "image-segmentation"),
    "mmengine": ("classification", "image-classification"),
}
# Data sets with names of their own, where a config changes neither their classes nor their place.
DATASETS = {"CocoDataset": "COCO", "ADE20KDataset": "ADE20K"}
# The figures that a zoo entry has a place for, and what turns each into per cent.
ZOO_FIGURES = {"COCO": ("coco", "coco/bbox_mAP", 100.0), "ADE20K": ("ade20k", "mIoU", 1.0)}


@dataclass(frozen=True)
class Published:
    """What `publish` made.

    Attributes:
        folder: with everything in it.
        weights: the file of weights.
        lines: what there is to say about it.
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
    """Make a folder of a checkpoint's weights alone and everything one needs to use them.

    The weights are those that the model evaluates with: the moving average where there is one.

    Args:
        config: checked; written out as it is.
        checkpoint: anything `read_checkpoint` reads.
        folder: must not exist; appears whole or not at all.
        name: of the model; the config's name if None.
        metrics: what tools/test.py wrote of this checkpoint; metrics.json beside it if None.
        licence: of the weights, where none comes with what they were trained from.

    Raises:
        InputError: the checkpoint is not of this config's model, or something cannot be read or
            written, or the licence contradicts that of the pretrained weights.
    """
    folder, name = Path(folder), name or Path(config.filename).stem
    if folder.exists():
        raise InputError(f"{folder}: exists already; choose another folder")
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
        card = _card(config, model, entry, inherited, scores, why_unknown, averaged, bool(recipe))
        write_atomically(part / "README.md", card)
        part.replace(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    path = folder / path.name
    lines = [f"weights: {path}" + (", the moving average" if averaged else "")]
    lines.append(f"licence: {licence or 'not stated'}")
    lines.append(f"scores: {'unknown, ' + why_unknown if why_unknown else len(scores)}")
    return Published(folder, path, tuple(lines))


def _model(
    config: Config, content: Mapping, checkpoint: str | os.PathLike
) -> tuple[nn.Module, bool]:
    """The config's model filled with the weights to publish, and whether they are an average."""
    config.setdefault("launcher", "none")
    fitted = deepcopy(config)
    fit_to_machine(fitted)
    scope = config.get("default_scope", "mmengine")
    enter_scope(scope)
    known = class_names(content)
    classes = _classes(config)
    if known and classes and known != classes:
        raise InputError(
            f"{checkpoint}: was trained on the classes {', '.join(known[:3])}, ...; those of "
            f"{config.filename} are {', '.join(classes[:3])}, ..."
        )
    model = MODELS.build(fitted.model)
    # The official code saves the average beside the weights; mmengine and our hook save it in
    # their place, and the trained ones as `ema_state_dict`.
    beside = "model_ema" in content
    tensors = state_dict(content, checkpoint, "model_ema" if beside else None)
    load_strictly(model, tensors, checkpoint)
    return model, beside or "ema_state_dict" in content


def _write_weights(model: nn.Module, folder: Path, name: str) -> tuple[Path, str]:
    """Write the model's tensors under a name with the first digits of their file's checksum."""
    tensors = {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
    unnamed = folder / "weights.safetensors"
    write_checkpoint(tensors, unnamed, wrapper=None, safetensors=True)
    digest = hashlib.sha256()
    with unnamed.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    path = unnamed.with_name(f"{name}-{digest.hexdigest()[:8]}.safetensors")
    unnamed.rename(path)
    return path, digest.hexdigest()


def _recipe(content: Mapping) -> str | None:
    """The config that mmengine saved in the checkpoint: what the model was trained by."""
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    return text if isinstance(text, str) and text.strip() else None


def _pretrained(recipe: str) -> tuple[str, ...]:
    """The checkpoints that a config's text starts from; it is read, never run.

    What a resumed run went on from is its own.
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
        named: list[tuple[str | None, ast.expr]] = []
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
    """The licence of the weights: that of what they were made from, else the one given."""
    known = [licence for licence in inherited.values() if licence]
    # A licence that forbids commercial use stays with everything made from the weights.
    strictest = min(known, key=lambda licence: bool(zoo.LICENCES.get(licence)), default=None)
    if given and strictest and not zoo.LICENCES.get(strictest) and given != strictest:
        raise InputError(
            f"--licence {given}: the weights were trained from ones under {strictest}, which "
            "goes with them"
        )
    return given or strictest


def _scores(
    checkpoint: str | os.PathLike, metrics: str | os.PathLike | None
) -> tuple[dict[str, float], str]:
    """The figures of a metrics file by name, and why there are none."""
    path = Path(metrics) if metrics else Path(checkpoint).parent / "metrics.json"
    if not path.is_file():
        if metrics:
            raise InputError(f"{path}: no such metrics file")
        return {}, f"there is no {path.name} beside the checkpoint"
    if not metrics and path.stat().st_mtime < Path(checkpoint).stat().st_mtime:
        return {}, f"{path.name} is older than the checkpoint; --metrics takes it all the same"
    try:
        figures = json.loads(path.read_text())
        found = {str(k): float(v) for k, v in figures.items() if math.isfinite(float(v))}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the figures of tools/test.py ({error})") from None
    return found, "" if found else f"{path.name} holds no figures"


def _classes(config: Config) -> tuple[str, ...] | None:
    """The class names of the config's test data; None where only its folder would tell them."""
    loader = config.get("test_dataloader") or config.get("train_dataloader")
    if loader is None:
        return None
    try:
        names = dataset_metainfo(loader.dataset, config.get("default_scope")).get("classes")
    except InputError:
        return None
    return tuple(names) if names else None


def _data_name(config: Config) -> str | None:
    """COCO or ADE20K, if the config trains on the data set itself; None for any other."""
    loader = config.get("train_dataloader") or config.get("test_dataloader")
    dataset = {} if loader is None else loader.dataset
    name = DATASETS.get(dataset.get("type"))
    return None if "metainfo" in dataset else name


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
    """The folder as an entry of the zoo; what is not known is None."""
    backbone = getattr(model, "backbone", None) or getattr(model, "network", model)
    shape = (tuple(getattr(backbone, "depths", ())), tuple(getattr(backbone, "dims", ())))
    known = (n for n, a in ARCHITECTURES.items() if (a["depths"], a["dims"]) == shape)
    before = [_pretraining(source) for source in sources]
    data = _data_name(config)
    own = data or "own data"
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
    if data and ZOO_FIGURES[data][1] in scores:
        field, key, percent = ZOO_FIGURES[data]
        score = Score(round(scores[key] * percent, 2), f"{type(model).__name__}, tools/test.py")
        entry = replace(entry, **{field: score})
    return entry


def _pretraining(source: str) -> str:
    try:
        return zoo.find(source).pretraining
    except InputError:
        return _shown(source)


def _shown(source: str) -> str:
    """An address as it is; of a path on this machine the last part."""
    return Path(source).name if Path(source).is_absolute() else source


def _card(
    config: Config,
    model: nn.Module,
    entry: Weights,
    inherited: Mapping[str, str | None],
    scores: Mapping[str, float],
    why_unknown: str,
    averaged: bool,
    has_recipe: bool,
) -> str:
    """README.md in the form of the Hugging Face hub: facts as YAML, then in words."""
    task, hub_task = TASKS.get(config.get("default_scope"), TASKS["mmengine"])
    data = _data_name(config)
    classes = _classes(config) or ()
    hub_data = {"COCO": "coco", "ADE20K": "scene_parse_150"}.get(data)
    stated = entry.licence != zoo.UNSTATED
    hub_licence = HUB_LICENCES.get(entry.licence, "other") if stated else None
    facts = ModelCardData(
        license=hub_licence,
        license_name=entry.licence if hub_licence == "other" else None,
        library_name="pytorch",
        pipeline_tag=hub_task,
        tags=["convnext", task, type(model).__name__],
        datasets=[hub_data] if hub_data else None,
        base_model=[s.removeprefix("hf-hub:") for s in inherited if s.startswith("hf-hub:")]
        or None,
        model_name=entry.name if scores else None,
        eval_results=[
            EvalResult(
                task_type=hub_task,
                dataset_type=(data or "own data").lower(),
                dataset_name=data or "own data",
                metric_type=key.rpartition("/")[2],
                metric_name=key,
                metric_value=value,
            )
            for key, value in scores.items()
        ]
        or None,
    )
    count = sum(p.numel() for p in model.parameters())
    lines = ["---", facts.to_yaml(), "---", "", f"# {entry.name}", ""]
    lines += [
        f"{type(model).__name__} for {task}, {count / 1e6:.1f} million parameters, {len(classes)} "
        f"classes{': ' + ', '.join(classes) if 0 < len(classes) <= 20 else ''}.",
        "",
        "```sh",
        f"python tools/test.py config.py {entry.source} --data DATA",
        f"python tools/predict.py config.py {entry.source} photo.jpg",
        "```",
        "",
        "## Scores",
        "",
    ]
    if scores:
        lines += ["Of `tools/test.py` on the test set of `config.py`.", "", "| metric | value |"]
        lines += ["|---|---|", *(f"| {key} | {value:.4f} |" for key, value in scores.items())]
    else:
        lines.append(f"Unknown: {why_unknown}.")
    loader = config.get("train_dataloader")
    lines += ["", "## Data and recipe", ""]
    if loader is not None:
        where = loader.dataset.get("ann_file") or loader.dataset.get("data_prefix") or ""
        where = where.values() if isinstance(where, Mapping) else [where]
        where = ", ".join(map(_shown, where))
        lines.append(f"Trained on {data or 'own data'} (`{loader.dataset.type}`, `{where}`).")
    for source, licence in inherited.items():
        lines.append(f"Started from `{_shown(source)}` (licence {licence or 'unknown'}).")
    if not inherited:
        lines.append("Started from no pretrained weights.")
    if averaged:
        lines.append("The weights are their moving average over the training.")
    if has_recipe:
        lines.append("`recipe.py` is the config that the checkpoint says it was trained by.")
    else:
        lines.append("The checkpoint does not say by which config it was trained.")
    lines += ["`config.py` is the resolved config to run it by.", "", "## Licence", ""]
    if not stated:
        lines.append("Not stated for these weights.")
    else:
        commercial = zoo.LICENCES.get(entry.licence)
        words = {True: "", False: ": not for commercial use"}.get(commercial, "")
        lines.append(f"{entry.licence}{words}.")
    unknown = [source for source, licence in inherited.items() if not licence]
    if unknown:
        lines.append(f"Of {', '.join(f'`{_shown(s)}`' for s in unknown)} the licence is unknown.")
    lines += ["", "## File", "", f"`{entry.source}`, sha256 `{entry.sha256}`.", ""]
    return "\n".join(lines)
