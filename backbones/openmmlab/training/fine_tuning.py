"""Start from a model trained on other classes."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.data.metainfo import class_names
from backbones.openmmlab.tasks import task_of, task_of_model
from backbones.weights.checkpoints import load_whole, read_checkpoint


def start_from(config: Config, checkpoint: str | None = None) -> None:
    """Have training initialise from a trained model, class-dependent layers excepted.

    Args:
        config: changed in place.
        checkpoint: anything `read_checkpoint` reads; the config's `init_from` if None.

    Raises:
        InputError: the config sets load_from as well.
    """
    checkpoint = checkpoint or config.get("init_from")
    if not checkpoint:
        return
    if config.get("load_from"):
        raise InputError(
            f"init_from={checkpoint}: the config also sets load_from={config.load_from}; "
            "remove one of them",
            code="bad-config",
            where="init_from",
        )
    config.init_from = str(checkpoint)
    # The checkpoint fills the backbone; its own pretrained weights need not be fetched.
    config.model[task_of(config).backbone].pop("init_cfg", None)


def class_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose outputs are one or more for each class."""
    pattern = task_of_model(model).class_layers
    names = []
    for name, _ in model.named_modules():
        if pattern.search(name):
            head = model.get_submodule(name.rpartition(".")[0])
            agnostic = "reg_class_agnostic" if name.endswith("fc_reg") else "class_agnostic"
            if not getattr(head, agnostic, False):
                names.append(name)
    return tuple(names)


def load_all_but_classes(
    model: nn.Module, checkpoint: object, source: str | Path, classes: tuple[str, ...] | None = None
) -> str:
    """Load a trained model into one with other classes; see `load_whole`.

    Layers with a row for each class keep their initial values where they have another shape, or
    all of them where the checkpoint was trained on other classes.

    Args:
        model: filled, or untouched where the checkpoint does not fit.
        checkpoint: what `read_checkpoint` returned.
        source: its name in messages.
        classes: the model's class names.

    Returns:
        One line that reports what was loaded and names the layers that were not.

    Raises:
        InputError: any other layer does not fit.
    """
    before = class_names(checkpoint)
    other = bool(before and classes and before != tuple(classes))
    return load_whole(model, checkpoint, source, class_layers(model), keep_fitting=not other)


def fine_tune(runner: Runner) -> None:
    """Load the checkpoint that the config's `init_from` names, unless a run is resumed."""
    source = runner.cfg.get("init_from")
    if not source or (
        runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir))
    ):
        return
    model: Any = runner.model
    model = model.module if is_model_wrapper(model) else model
    dataset: Any = runner.train_dataloader.dataset
    classes = dataset.metainfo.get("classes")
    runner.logger.info(load_all_but_classes(model, read_checkpoint(source), source, classes))
