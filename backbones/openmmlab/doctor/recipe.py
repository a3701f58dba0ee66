"""A config against its own recipe and this machine: weights, batch, norms, rates, windows, disk."""

import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.config.global_batch import (
    batch_norm_note,
    micro_batch_size,
    norm_keys,
    recipe_batch,
)
from backbones.openmmlab.config.machine import process_count
from backbones.openmmlab.data.issues import Issue
from backbones.weights import load_pretrained

from .complexity import build_on_meta
from .memory import GIB, OPTIMIZER_STATES

BACKBONES = ("backbone", "network")


def check_recipe(config: Config) -> Iterator[Issue]:
    """Findings that need no file but the config."""
    yield from _check_batch(config)
    yield from _check_norms(config)
    yield from _check_windows(config)


def _check_batch(config: Config) -> Iterator[Issue]:
    if config.get("train_dataloader") is None or config.get("optim_wrapper") is None:
        return
    images, processes, recipe = (
        micro_batch_size(config),
        process_count(config),
        recipe_batch(config),
    )
    together = images * processes
    counts = config.optim_wrapper.get("accumulative_counts", 1)
    if recipe is None or together * counts == recipe:
        return
    if counts > 1 or recipe % together:
        severity = "warning" if counts > 1 else "error"
        advice = (
            "leave accumulative_counts out: tools/train.py accumulates by itself"
            if counts > 1 else "give --total-batch and --scale-lr, or another batch_size"
        )  # fmt: skip
        yield Issue(
            severity, "train_dataloader.batch_size",
            f"{together * counts} images a step, the recipe's learning rate is for {recipe}",
            advice,
        )  # fmt: skip
    else:
        yield Issue(
            "note", "train_dataloader.batch_size",
            f"{together} images at once here, {recipe} in the recipe: tools/train.py accumulates "
            f"{recipe // together} times; learning rate and schedule are the recipe's",
        )  # fmt: skip


def _check_norms(config: Config) -> Iterator[Issue]:
    if config.get("train_dataloader") is None:
        return
    images = micro_batch_size(config)
    synchronised = process_count(config) if torch.cuda.is_available() else 1
    keys = list(norm_keys(config.model))
    pools = [key for key in keys if _pools_to_one(config.model, key)]
    if pools and images * synchronised == 1:
        yield Issue(
            "error", pools[0],
            "batch norm of one image pooled to 1x1 has one value a channel: torch refuses it",
            f"set train_dataloader.batch_size=2, or {pools[0]}.type=GN {pools[0]}.num_groups=32",
        )  # fmt: skip
    elif keys and (note := batch_norm_note(config)):
        yield Issue("note", keys[0], note)


def _pools_to_one(model: dict, key: str) -> bool:
    node = model
    for part in key.split(".")[1:-1]:
        node = node[int(part)] if part.isdigit() else node[part]
    return 1 in tuple(node.get("pool_scales", (1,) if "PSP" in str(node.get("type")) else ()))


def _check_windows(config: Config) -> Iterator[Issue]:
    test = config.model.get("test_cfg") or {}
    window, stride = test.get("crop_size"), test.get("stride")
    if test.get("mode") == "slide" and window and stride:
        if any(s > w for s, w in zip(stride, window, strict=True)):
            yield Issue(
                "error", "model.test_cfg.stride",
                f"{tuple(stride)} is more than crop_size {tuple(window)}: strips between the "
                "windows are never looked at", "make it smaller, two thirds in the recipes",
            )  # fmt: skip
    crop = training_crop(config)
    size = (config.model.get("data_preprocessor") or {}).get("size")
    for key, value in (
        ("model.data_preprocessor.size", size),
        ("model.test_cfg.crop_size", window),
    ):
        if crop and value and tuple(value) != crop:
            yield Issue(
                "warning", key, f"{tuple(value)}, but training crops are {crop} (height, width)",
                "make them equal, unless it is meant",
            )  # fmt: skip


def training_crop(config: Config) -> tuple[int, int] | None:
    """(height, width) that a segmentor's training pipeline crops to."""
    if config.get("train_dataloader") is None or config.get("default_scope") != "mmseg":
        return None
    crops = [s for s in config.train_dataloader.dataset.pipeline if s["type"] == "RandomCrop"]
    if not crops:
        return None
    crop = crops[-1]["crop_size"]
    return (crop, crop) if isinstance(crop, int) else tuple(crop)


def check_weights(config: Config) -> Iterator[Issue]:
    """How much of the backbone its pretrained file covers; a file not here is not downloaded."""
    for name in BACKBONES:
        backbone = config.model.get(name) or {}
        init = backbone.get("init_cfg") or {}
        if not backbone or init.get("type") != "Pretrained":
            continue
        key, source = f"model.{name}.init_cfg.checkpoint", str(init.get("checkpoint"))
        if (where := _not_here(source)) is not None:
            yield Issue("note", key, f"{source}: not here yet, would be downloaded {where}")
            continue
        scope = config.get("default_scope", "mmengine")
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build({**deepcopy(backbone.to_dict()), "init_cfg": None})
        options = {k: v for k, v in init.items() if k in ("prefix", "wrapper", "sha256")}
        try:
            coverage = load_pretrained(model, source, **options)
        except InputError as error:
            yield Issue("error", key, str(error), "")
            continue
        total = len(list(model.parameters()))
        loaded = total - len(coverage.initial)
        yield Issue(
            "note", key,
            f"{source} fills {loaded} of the backbone's {total} parameters"
            + (f", the others ({', '.join(coverage.initial)}) are new" if coverage.initial else ""),
        )  # fmt: skip


def _not_here(source: str) -> str | None:
    """Where a source that is not on this machine would be downloaded to; None if it is here."""
    parts = urlparse(source)
    if parts.scheme in ("http", "https"):
        below = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        found = folder.rglob(below[-1]) if folder.is_dir() else ()
        return None if any(found) else f"to {folder}"
    if parts.scheme in ("timm", "hf-hub"):
        from huggingface_hub import try_to_load_from_cache

        name = f"timm/{parts.path}" if parts.scheme == "timm" else parts.path
        repository = "/".join(name.partition("@")[0].split("/")[:2])
        names = ("model.safetensors", "pytorch_model.bin")
        here = any(isinstance(try_to_load_from_cache(repository, each), str) for each in names)
        return None if here else "to the hub's cache"
    return None


def check_disk(config: Config) -> Iterator[Issue]:
    """Whether the checkpoints that the run will write have room."""
    checkpoint = (config.get("default_hooks") or {}).get("checkpoint") or {}
    if not checkpoint or config.get("optim_wrapper") is None or config.get("train_cfg") is None:
        return
    try:
        size = checkpoint_bytes(build_on_meta(config), config)
    except (RuntimeError, NotImplementedError):  # a model that needs values while it is built
        return
    train = config.train_cfg
    length = train.get("max_epochs" if checkpoint.get("by_epoch", True) else "max_iters") or 0
    kept = max(1, length // interval) if (interval := checkpoint.get("interval", -1)) > 0 else 1
    if (limit := checkpoint.get("max_keep_ckpts", -1)) > 0:
        kept = min(kept, limit + 1)  # the oldest goes after the newest is there
    if checkpoint.get("save_best"):
        kept += 1
    folder = Path(config.get("work_dir") or ".").absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    said = (
        f"{kept} checkpoints of {size / GIB:.2f} GiB will be written, {free / GIB:.2f} GiB are free"
    )
    if kept * size > free:
        yield Issue(
            "error", str(folder), said,
            "make room, give another --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts",
        )  # fmt: skip
    elif 2 * kept * size > free:
        yield Issue("warning", str(folder), said, "the disk will be more than half full of them")
    if not os.access(existing, os.W_OK):
        yield Issue("error", str(existing), "cannot be written to", "give another --work-dir")


def checkpoint_bytes(model: nn.Module, config: Config) -> int:
    """Bytes of one checkpoint: weights, the optimizer's state, and an average's weights if any."""
    state = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    states = OPTIMIZER_STATES.get(config.optim_wrapper.optimizer.type, 2)
    hooks = config.get("custom_hooks") or []
    averages = sum("EMA" in str(h["type"]) or "Average" in str(h["type"]) for h in hooks)
    return state * (1 + averages) + states * trained
