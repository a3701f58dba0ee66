"""Check a config against its own recipe: batch size, norms and windows."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from backbones.openmmlab.config.global_batch import batch_norm_note
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.walk import type_name

from .plan import RunPlan

BATCH_SIZE = "train_dataloader.batch_size"


def check_batch(plan: RunPlan) -> Iterator[Issue]:
    """Compare the global batch size with the one that the learning rate is for."""
    recipe, counts = plan.recipe_batch, plan.accumulative_counts
    if recipe is None or not isinstance(plan.micro_batch, int) or plan.micro_batch < 1:
        return  # `set_global_batch` refuses a batch size that is none
    together = plan.micro_batch * plan.ranks
    if together * counts == recipe:
        return
    text = f"{together * counts} images per step; the recipe's learning rate is for {recipe}"
    if counts > 1:
        advice = "remove accumulative_counts: tools/train.py accumulates by itself"
        yield Issue("warning", BATCH_SIZE, text, advice, "bad-config")
    elif recipe % together:
        advice = "give --global-batch and --scale-lr, or another batch_size"
        yield Issue("error", BATCH_SIZE, text, advice, "bad-config")
    else:
        yield Issue(
            "note", BATCH_SIZE,
            f"{together} images at once here, {recipe} in the recipe: tools/train.py accumulates "
            f"{recipe // together} times; learning rate and schedule stay the recipe's",
            code="bad-config",
        )  # fmt: skip


def check_norms(plan: RunPlan) -> Iterator[Issue]:
    """Check that every batch norm has enough values to compute statistics."""
    if plan.micro_batch is None or not plan.norms:
        return
    synchronised = plan.ranks if torch.cuda.is_available() else 1
    pools = [key for key in plan.norms if _pools_to_one(plan.config.model, key)]
    if pools and plan.micro_batch * synchronised == 1:
        yield Issue(
            "error", pools[0],
            "batch norm of one image pooled to 1x1 has one value per channel, which torch rejects",
            f"set train_dataloader.batch_size=2, or {pools[0]}.type=GN {pools[0]}.num_groups=32",
            "bad-config",
        )  # fmt: skip
    elif note := batch_norm_note(plan.config):
        yield Issue("note", plan.norms[0], note, code="bad-config")


def _pools_to_one(model: Mapping, key: str) -> bool:
    node: Any = model
    for part in key.split(".")[1:-1]:
        node = node[int(part)] if part.isdigit() else node[part]
    if not isinstance(node, Mapping):
        return False
    return 1 in tuple(node.get("pool_scales", (1,) if "PSP" in type_name(node) else ()))


def check_windows(plan: RunPlan) -> Iterator[Issue]:
    """Check that sliding windows leave no gaps and that crops and windows have one size."""
    model = plan.config.get("model") or {}
    test = model.get("test_cfg") or {}
    window, stride = _size(test.get("crop_size")), _size(test.get("stride"))
    if test.get("mode") == "slide" and window and stride:
        if any(s > w for s, w in zip(stride, window, strict=True)):
            yield Issue(
                "error", "model.test_cfg.stride",
                f"{stride} is more than crop_size {window}: windows leave gaps between them",
                "reduce it (the recipes use two thirds of crop_size)", "bad-config",
            )  # fmt: skip
    if plan.crop is None:
        return
    size = _size((model.get("data_preprocessor") or {}).get("size"))
    for key, value in (
        ("model.data_preprocessor.size", size),
        ("model.test_cfg.crop_size", window),
    ):
        if value and value != plan.crop:
            yield Issue(
                "warning", key, f"{value}, but training crops are {plan.crop} (height, width)",
                "make them equal, unless this is intended", "bad-config",
            )  # fmt: skip


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    return (value, value) if isinstance(value, int) else None
