"""The recipe's optimizer steps on any number of processes, by accumulating gradients.

An iteration of the training loop stays one optimizer step: the loader gives a process all its
images of the step, and the step takes them in parts of the batch size that fits the machine. So
schedules, intervals, averages of the weights, checkpoints and resumption count what they count in
the recipe. mmengine's `accumulative_counts` alone counts the parts as iterations: every number
above would have to be multiplied, its schedules move within a step, an average of the weights is
updated without one, and the last parts of an epoch run over into the next.

Each part's loss is divided by the number of parts, as DDP divides the gradients by the number of
processes. Hence 1 process with 8 parts of 2 images computes what 8 processes with 2 images do, also
where a loss is normalised over the images that are seen together; see docs/doctor.md.
"""

from collections.abc import Iterator
from math import ceil, sqrt

import torch
from mmengine.config import Config

from backbones.errors import InputError

from .machine import process_count

HOOK = "AccumulationHook"
LR_SCALES = {"linear": lambda ratio: ratio, "sqrt": sqrt}


def recipe_batch(config: Config) -> int | None:
    """Images of one optimizer step that the recipe's learning rate is for; None if unknown."""
    return (config.get("auto_scale_lr") or {}).get("base_batch_size")


def micro_batch_size(config: Config) -> int:
    """Images that one process computes at once."""
    for hook in config.get("custom_hooks") or []:
        if hook.get("type") == HOOK:
            return hook.batch_size
    return config.train_dataloader.batch_size


def set_global_batch(config: Config, total: int | None = None, scale_lr: str | None = None) -> str:
    """Let every optimizer step see `total` images, however many processes there are.

    Args:
        config: to change: the loader's batch size and batch sampler, and the hooks.
        total: images of a step; None for the recipe's, or what the config gives if it names none.
        scale_lr: `linear` or `sqrt`, the learning rate's law in total over the recipe's batch.

    Returns:
        The line to be said at the start.

    Raises:
        InputError: the total is not a multiple of what all processes compute at once, the recipe's
            batch is not known though the rate is to be scaled, or the config accumulates already.
    """
    if config.get("train_dataloader") is None or config.get("optim_wrapper") is None:
        raise InputError(f"{config.filename}: has no train_dataloader or no optim_wrapper")
    recipe = recipe_batch(config)
    if (config.get("auto_scale_lr") or {}).get("enable"):
        raise InputError(
            "config key auto_scale_lr.enable: does not see accumulated steps; set it to False and "
            "give --scale-lr linear"
        )
    processes, images = process_count(config), micro_batch_size(config)
    if not isinstance(images, int) or images < 1:
        raise InputError(
            f"config key train_dataloader.batch_size: {images!r}; give a whole number from 1 on"
        )
    counts = config.optim_wrapper.get("accumulative_counts", 1)
    if counts != 1:
        if total is not None or scale_lr is not None:
            raise InputError(
                "config key optim_wrapper.accumulative_counts: set to 1 where --total-batch or "
                "--scale-lr is given, which accumulate without it"
            )
        return (
            f"total batch {processes * images * counts}: {_plural(processes, 'process')} x "
            f"{_plural(images, 'image')} x accumulative_counts {counts}, counted as mmengine does: "
            "schedules and intervals are in parts of a step"
        )
    together = processes * images
    total = total if total is not None else recipe or together
    if total < 1 or total % together:
        raise InputError(_does_not_divide(total, processes, images, total == recipe))
    parts = total // together
    said = f"total batch {total}: {_plural(processes, 'process')} x {_plural(images, 'image')}"
    if parts > 1:
        said += f" x {parts} steps accumulated"
    _accumulate(config, images, parts)
    return said + _scale(config, total, recipe, scale_lr)


def batch_norm_note(config: Config) -> str | None:
    """What accumulation cannot give a batch norm, and what to do; None where nothing is lost."""
    recipe, seen = recipe_batch(config), micro_batch_size(config)
    norms = list(norm_keys(config.model))
    if recipe is None or not norms:
        return None
    if torch.cuda.is_available():  # SyncBN: else it becomes BN
        seen *= process_count(config)
    if seen >= recipe:
        return None
    first = norms[0]
    others = f", and so for {', '.join(norms[1:])}" if norms[1:] else ""
    return (
        f"batch norm takes its statistics from {_plural(seen, 'image')} at once, {recipe} in the "
        "recipe: accumulation does not change that. Group norm does not depend on it: "
        f"--cfg-options {first}.type=GN {first}.num_groups=32{others}"
    )


def norm_keys(node: object, path: str = "model") -> Iterator[str]:
    """Yield the config keys of all batch norms that train, synchronised ones too."""
    if isinstance(node, dict) and not node.get("norm_eval"):
        if node.get("type") in ("BN", "SyncBN"):
            yield path
        for key, value in node.items():
            yield from norm_keys(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from norm_keys(value, f"{path}.{i}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{('es' if noun.endswith('s') else 's') * (count != 1)}"


def _does_not_divide(total: int, processes: int, images: int, recipes: bool) -> str:
    together = processes * images
    whose = "total batch of the recipe" if recipes else "--total-batch"
    ways = []
    if total > 0 and total % processes == 0:
        share = total // processes
        sizes = [str(size) for size in range(1, share + 1) if share % size == 0]
        ways.append(f"train_dataloader.batch_size {' or '.join(sizes)} by --cfg-options")
    near = sorted({together * max(1, total // together), together * max(1, ceil(total / together))})
    ways.append(f"--total-batch {' or '.join(map(str, near))} (any multiple of {together})")
    return (
        f"{whose} {total}: not a multiple of {together} = {_plural(processes, 'process')} x "
        f"{_plural(images, 'image')}; possible: {', or '.join(ways)}"
    )


def _accumulate(config: Config, images: int, parts: int) -> None:
    """Write into the config that a process's step has `parts` parts of `images` images."""
    loader = config.train_dataloader
    hooks = [hook for hook in config.get("custom_hooks") or [] if hook.get("type") != HOOK]
    batches = loader.get("batch_sampler")
    if batches and batches["type"] == "StepBatchSampler":
        batches = loader.batch_sampler = batches["batches"]
    loader.batch_size = images * parts
    if parts > 1:
        hooks.append(dict(type=HOOK, batch_size=images))
        if batches:
            loader.batch_sampler = dict(
                type="StepBatchSampler", batches=batches, micro_batch_size=images
            )
        if loader.get("num_workers"):
            loader.prefetch_factor = 1  # a worker reads a whole step's images
    config.custom_hooks = hooks


def _scale(config: Config, total: int, recipe: int | None, law: str | None) -> str:
    """Scale the rates if asked; what there is to say of it."""
    if law is None:
        if recipe in (None, total):
            return ""
        return (
            f"; the recipe's is {recipe}: the learning rate stays {_rate(config)}, "
            "--scale-lr linear or sqrt scales it"
        )
    if recipe is None:
        raise InputError(
            f"--scale-lr {law}: {config.filename} does not say its own total batch; set "
            "auto_scale_lr.base_batch_size"
        )
    factor = LR_SCALES[law](total / recipe)
    before = _rate(config)
    config.optim_wrapper.optimizer.lr *= factor
    for schedule in config.get("param_scheduler") or []:
        if schedule.get("eta_min"):
            schedule.eta_min *= factor
    return f"; learning rate {_rate(config)}, {before} of the recipe's {recipe} scaled by {law} law"


def _rate(config: Config) -> str:
    return f"{config.optim_wrapper.optimizer.lr:.4g}"
