"""Check a run's demands on this machine: whether its model can be built, memory and disk."""

import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.config.global_batch import set_global_batch
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.walk import type_name

from .memory import GIB, OPTIMIZER_STATES, available_memory, predict_training
from .plan import RunPlan


def check_model(plan: RunPlan) -> Iterator[Issue]:
    """Check that the model can be built."""
    error = plan.model_or_error
    if not isinstance(error, Exception):
        return
    if not isinstance(plan.config.get("model"), Mapping):
        yield Issue("error", "model", "the config has none", code="bad-config")
        return
    reason = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
    if isinstance(error, InputError):
        yield Issue.of(error, "model")
    elif isinstance(error, ImportError):
        yield Issue("error", "model", f"cannot be built ({reason})", code="missing-package")
    elif isinstance(error, RuntimeError | NotImplementedError | OSError):
        # It reads a file, or computes with values while it is built; here it has none.
        text = f"its size is not known: it cannot be built without values or files ({reason})"
        yield Issue("note", "model", text, code="unsupported")
    else:
        yield Issue("error", "model", f"cannot be built ({reason})", code="bad-config")


def check_memory(plan: RunPlan) -> Iterator[Issue]:
    """Compare the memory of a training step with the free memory."""
    if plan.micro_batch is None or plan.model is None or (size := plan.step_size()) is None:
        return
    if plan.config.get("strategy") == "fsdp":
        text = "memory of a step is not predicted under fsdp"
        yield Issue("note", "strategy", text, code="unsupported")
        return
    config, images = deepcopy(plan.config), plan.micro_batch
    try:
        set_global_batch(config)
    except InputError:
        pass  # `check_batch` reports it; a step of one micro-batch needs least
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        needed = predict_training(config, images, size, device).peak
    except Exception as error:  # any head may want more than images
        reason = _first_line(error) or type(error).__name__
        text = f"memory of a step cannot be predicted ({reason})"
        yield Issue("note", "model", text, code="unsupported")
        return
    free = available_memory(device)
    text = (
        f"a step of {images} images of {size[0]}x{size[1]} needs about {needed / GIB:.1f} GiB, "
        f"{free / GIB:.1f} GiB are free on the {'GPU' if device == 'cuda' else 'CPU'}"
    )
    key = "train_dataloader.batch_size"
    if needed > free:
        advice = f"--cfg-options {key}={max(1, images // 2)}: tools/train.py accumulates the rest"
        if images == 1:
            advice = (
                "--cfg-options model.backbone.with_cp=True, smaller images, or several ranks with "
                "--strategy fsdp"
            )
        yield Issue("error", key, text, advice, "unsupported")
    elif needed > 0.9 * free:
        advice = "memory may run out occasionally; reduce batch_size"
        yield Issue("warning", key, text, advice, "unsupported")
    else:
        yield Issue("note", key, text, code="unsupported")


def check_disk(plan: RunPlan) -> Iterator[Issue]:
    """Check that the disk has room for the checkpoints of the run."""
    config = plan.config
    checkpoint = (config.get("default_hooks") or {}).get("checkpoint") or {}
    train, optimizer = config.get("train_cfg"), config.get("optim_wrapper")
    if not checkpoint or optimizer is None or train is None or plan.model is None:
        return
    size = checkpoint_bytes(plan.model, config)
    length = train.get("max_epochs" if checkpoint.get("by_epoch", True) else "max_iters") or 0
    kept = max(1, length // interval) if (interval := checkpoint.get("interval", -1)) > 0 else 1
    if (limit := checkpoint.get("max_keep_ckpts", -1)) > 0:
        kept = min(kept, limit + 1)  # the oldest goes after the newest is there
    if checkpoint.get("save_best"):
        kept += 1
    folder = Path(config.get("work_dir") or ".").absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    text = (
        f"{kept} checkpoints of {size / GIB:.2f} GiB will be written, {free / GIB:.2f} GiB are free"
    )
    if kept * size > free:
        advice = (
            "free space, give another --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts"
        )
        yield Issue("error", str(folder), text, advice, "no-space")
    elif 2 * kept * size > free:
        advice = "they will fill more than half of it"
        yield Issue("warning", str(folder), text, advice, "no-space")
    if not os.access(existing, os.W_OK):
        advice = "give another --work-dir"
        yield Issue("error", str(existing), "cannot be written to", advice, "write-failed")


def checkpoint_bytes(model: nn.Module, config: Config) -> int:
    """Return the bytes of one checkpoint: weights, EMA weights and the optimizer's state."""
    state = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    optimizer = config.optim_wrapper.get("optimizer") or {}
    states = OPTIMIZER_STATES.get(type_name(optimizer), 2)
    hooks = [type_name(hook) for hook in config.get("custom_hooks") or []]
    averages = sum("EMA" in name or "Average" in name for name in hooks)
    return state * (1 + averages) + states * trained


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
