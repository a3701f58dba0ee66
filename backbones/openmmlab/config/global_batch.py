"""Keep the recipe's global batch size on any number of ranks by accumulating gradients.

An iteration of the training loop stays one optimizer step: the loader gives a rank all its images
of the step, and the step takes them in micro-batches of the size that fits the machine. So
schedules, intervals, EMA, checkpoints and resumption count what they count in the recipe.
mmengine's `accumulative_counts` alone counts micro-batches as iterations: every number above would
have to be multiplied, its schedules move within a step, an EMA is updated without one, and the last
micro-batches of an epoch run over into the next.

Each micro-batch's loss is divided by their number, as DDP divides the gradients by the number of
ranks. Hence 1 rank with 8 micro-batches of 2 images computes what 8 ranks with 2 images do, also
where a loss is normalized over the images that are seen together; see docs/doctor.md.
"""

from collections.abc import Iterator
from math import ceil, sqrt

import torch
from mmengine.config import Config

from backbones.errors import InputError
from backbones.openmmlab.walk import nodes

from .machine import process_count

HOOK = "AccumulationHook"
LR_SCALES = {"linear": lambda ratio: ratio, "sqrt": sqrt}


def recipe_batch(config: Config) -> int | None:
    """Return the global batch size that the recipe's learning rate is for; None if unknown."""
    return (config.get("auto_scale_lr") or {}).get("base_batch_size")


def micro_batch_size(config: Config) -> int:
    """Return the micro-batch size of a rank: how many images it computes at once."""
    for hook in config.get("custom_hooks") or []:
        if hook.get("type") == HOOK:
            return hook.batch_size
    return config.train_dataloader.batch_size


def set_global_batch(config: Config, size: int | None = None, scale_lr: str | None = None) -> str:
    """Set the global batch size: every optimizer step sees `size` images on any number of ranks.

    Args:
        config: config to change: the loader's batch size and batch sampler, and the hooks.
        size: global batch size; None for the recipe's, or what the config gives if it names none.
        scale_lr: `linear` or `sqrt`, how the learning rate follows the global batch size.

    Returns:
        The line to log at the start.

    Raises:
        InputError: the size is not a multiple of what all ranks compute at once, the recipe's is
            not known though the learning rate is to be scaled, or the config accumulates already.
    """
    if config.get("train_dataloader") is None or config.get("optim_wrapper") is None:
        missing = "train_dataloader" if config.get("train_dataloader") is None else "optim_wrapper"
        raise InputError(
            f"{config.filename}: has no {missing} to train with", code="bad-config", where=missing
        )
    recipe = recipe_batch(config)
    if (config.get("auto_scale_lr") or {}).get("enable"):
        raise InputError(
            "config key auto_scale_lr.enable: does not see accumulated steps; set it to False and "
            "pass --scale-lr linear",
            code="unsupported",
            where="auto_scale_lr.enable",
        )
    ranks, images = process_count(config), micro_batch_size(config)
    if not isinstance(images, int) or images < 1:
        raise InputError(
            f"config key train_dataloader.batch_size: {images!r} is not a positive integer",
            code="bad-value",
            where="train_dataloader.batch_size",
        )
    counts = config.optim_wrapper.get("accumulative_counts", 1)
    if counts != 1:
        if size is not None or scale_lr is not None:
            raise InputError(
                "config key optim_wrapper.accumulative_counts: must be 1 with --global-batch and "
                "--scale-lr, which accumulate by themselves",
                code="unsupported",
                where="optim_wrapper.accumulative_counts",
            )
        return (
            f"global batch size {ranks * images * counts}: {_plural(ranks, 'rank')} x "
            f"{_plural(images, 'image')} x accumulative_counts {counts}; schedules and "
            "intervals count micro-batches, as in mmengine"
        )
    together = ranks * images
    size = size if size is not None else recipe or together
    if size < 1 or size % together:
        raise InputError(
            _does_not_divide(size, ranks, images, size == recipe),
            code="bad-argument",
            where="--global-batch",
        )
    count = size // together
    line = f"global batch size {size}: {_plural(ranks, 'rank')} x {_plural(images, 'image')}"
    if count > 1:
        line += f" x {count} micro-batches accumulated"
    _accumulate(config, images, count)
    return line + _scale(config, size, recipe, scale_lr)


def batch_norm_note(config: Config) -> str | None:
    """Return why accumulation changes a batch norm's statistics and the remedy, or None."""
    recipe, seen = recipe_batch(config), micro_batch_size(config)
    norms = list(norm_keys(config.model))
    if recipe is None or not norms:
        return None
    if torch.cuda.is_available():  # SyncBN: else it becomes BN
        seen *= process_count(config)
    if seen >= recipe:
        return None
    first = norms[0]
    others = f", and likewise {', '.join(norms[1:])}" if norms[1:] else ""
    return (
        f"batch norm computes its statistics over {_plural(seen, 'image')} at once, {recipe} in "
        "the recipe; accumulation does not change that. Group norm does not depend on the batch: "
        f"--cfg-options {first}.type=GN {first}.num_groups=32{others}"
    )


def norm_keys(model: dict) -> Iterator[str]:
    """Yield the config keys of all batch norms of a model that train, synchronized ones too."""
    frozen: list[str] = []
    for path, node in nodes(model, "model"):
        if node.get("norm_eval"):
            frozen.append(f"{path}.")
        if path.startswith(tuple(frozen)):
            continue
        if node.get("type") in ("BN", "SyncBN"):
            yield path


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _does_not_divide(size: int, ranks: int, images: int, is_recipes: bool) -> str:
    together = ranks * images
    whose = "global batch size of the recipe" if is_recipes else "--global-batch"
    ways = []
    if size > 0 and size % ranks == 0:
        share = size // ranks
        sizes = [str(each) for each in range(1, share + 1) if share % each == 0]
        ways.append(f"--cfg-options train_dataloader.batch_size={' or '.join(sizes)}")
    near = sorted({together * max(1, size // together), together * max(1, ceil(size / together))})
    ways.append(f"--global-batch {' or '.join(map(str, near))} (any multiple of {together})")
    return (
        f"{whose} {size}: not a multiple of {together} = {_plural(ranks, 'rank')} x "
        f"{_plural(images, 'image')}; possible: {', or '.join(ways)}"
    )


def _accumulate(config: Config, images: int, count: int) -> None:
    """Set `count` micro-batches of `images` images for each step of a rank."""
    loader = config.train_dataloader
    hooks = [hook for hook in config.get("custom_hooks") or [] if hook.get("type") != HOOK]
    batches = loader.get("batch_sampler")
    if batches and batches["type"] == "StepBatchSampler":
        batches = loader.batch_sampler = batches["batches"]
    loader.batch_size = images * count
    if count > 1:
        hooks.append(dict(type=HOOK, batch_size=images))
        if batches:
            loader.batch_sampler = dict(
                type="StepBatchSampler", batches=batches, micro_batch_size=images
            )
        if loader.get("num_workers"):
            loader.prefetch_factor = 1  # a worker reads a whole step's images
    config.custom_hooks = hooks


def _scale(config: Config, size: int, recipe: int | None, rule: str | None) -> str:
    """Scale the learning rates if asked; return the lines to log about them."""
    if rule is None:
        if recipe in (None, size):
            return ""
        return (
            f"; the recipe's is {recipe}: the learning rate stays {_rate(config)}, "
            "--scale-lr linear or sqrt scales it"
        )
    if recipe is None:
        raise InputError(
            f"--scale-lr {rule}: {config.filename} does not set its batch size "
            "(auto_scale_lr.base_batch_size)",
            code="bad-config",
            where="auto_scale_lr.base_batch_size",
        )
    factor = LR_SCALES[rule](size / recipe)
    before = _rate(config)
    config.optim_wrapper.optimizer.lr *= factor
    for schedule in config.get("param_scheduler") or []:
        if schedule.get("eta_min"):
            schedule.eta_min *= factor
    return (
        f"; learning rate {_rate(config)}: the recipe's {before} for {recipe} images, by the "
        f"{'linear' if rule == 'linear' else 'square root'} scaling rule"
    )


def _rate(config: Config) -> str:
    return f"{config.optim_wrapper.optimizer.lr:.4g}"
