"""Starting from a model trained on other classes."""

import re
from pathlib import Path

from mmengine.runner import Runner
from torch import nn

from backbones.openmmlab.data.metainfo import class_names
from backbones.openmmlab.mmengine_internals import resumes
from backbones.weights import load_strictly, read_checkpoint

from .ranks import unwrapped

# Layers with a row for each class.
PER_CLASS = re.compile(r"(?:^|\.)(?:fc_cls|fc_reg|conv_logits|conv_seg)$")


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
    """Load a trained model into one of other classes; see `load_strictly`.

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
    return load_strictly(model, checkpoint, source, class_layers(model), keep_fitting=not other)


def fine_tune(runner: Runner) -> None:
    """Load what the config's `init_from` names, unless a run is resumed."""
    source = runner.cfg.get("init_from")
    if not source or resumes(runner):
        return
    model = unwrapped(runner.model)
    classes = runner.train_dataloader.dataset.metainfo.get("classes")
    runner.logger.info(load_all_but_classes(model, read_checkpoint(source), source, classes))
