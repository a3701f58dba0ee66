"""Starting from a model trained on other classes."""

import re
from pathlib import Path

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from backbones.errors import InputError
from backbones.openmmlab.data.metainfo import class_names
from backbones.weights.checkpoints import load_whole, read_checkpoint

# Layers with a row for each class.
PER_CLASS = re.compile(r"(?:^|\.)(?:fc_cls|fc_reg|conv_logits|conv_seg)$")


def start_from(config: Config, checkpoint: str | None = None) -> None:
    """Have training start from a trained model but for the layers that depend on the classes.

    Args:
        config: changed in place.
        checkpoint: anything `read_checkpoint` reads; the config's `init_from` if None.

    Raises:
        InputError: the config asks for another start already.
    """
    checkpoint = checkpoint or config.get("init_from")
    if not checkpoint:
        return
    if config.get("load_from"):
        raise InputError(f"init_from={checkpoint}: the config loads load_from={config.load_from}")
    config.init_from = str(checkpoint)
    # The checkpoint fills the backbone; what it was pretrained from need not be fetched.
    config.model.backbone.pop("init_cfg", None)


def class_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers whose outputs are one or more for each class."""
    names = []
    for name, _ in model.named_modules():
        if PER_CLASS.search(name):
            head = model.get_submodule(name.rpartition(".")[0])
            agnostic = "reg_class_agnostic" if name.endswith("fc_reg") else "class_agnostic"
            if not getattr(head, agnostic, False):
                names.append(name)
    return tuple(names)


def load_all_but_classes(
    model: nn.Module, checkpoint: object, source: str | Path, classes: tuple[str, ...] | None = None
) -> str:
    """Load a trained model into one of other classes; see `load_whole`.

    Layers with a row for each class keep their initial values where they have another shape, or
    all of them where the checkpoint says that its classes are others.

    Args:
        model: filled, or untouched.
        checkpoint: what `read_checkpoint` returned.
        source: what to call it in messages.
        classes: the model's class names.

    Returns:
        One line that says what was loaded and names the layers that were not.

    Raises:
        InputError: anything else does not fit.
    """
    before = class_names(checkpoint)
    other = bool(before and classes and before != tuple(classes))
    return load_whole(model, checkpoint, source, class_layers(model), keep_fitting=not other)


def fine_tune(runner: Runner) -> None:
    """Load what the config's `init_from` names, unless a run is resumed."""
    source = runner.cfg.get("init_from")
    if not source or (
        runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir))
    ):
        return
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    classes = runner.train_dataloader.dataset.metainfo.get("classes")
    runner.logger.info(load_all_but_classes(model, read_checkpoint(source), source, classes))
