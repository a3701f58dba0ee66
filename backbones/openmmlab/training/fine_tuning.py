"""Start from a model trained on other classes."""

from pathlib import Path
from typing import Any

from mmengine.runner import Runner
from torch import nn

from backbones.openmmlab.data.metainfo import class_names
from backbones.openmmlab.mmengine_internals import resumes
from backbones.openmmlab.tasks import task_of_model
from backbones.weights import load_strictly, read_checkpoint

from .ranks import unwrapped


def class_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers with one or more outputs per class."""
    pattern = task_of_model(model).class_layers
    names = []
    for name, module in model.named_modules():
        # A loss has a name like the layer's, and a list of layers that of each of them.
        if pattern.search(name) and next(module.parameters(recurse=False), None) is not None:
            head = model.get_submodule(name.rpartition(".")[0])
            agnostic = "reg_class_agnostic" if name.endswith("fc_reg") else "class_agnostic"
            if not getattr(head, agnostic, False):
                names.append(name)
    return tuple(names)


def load_all_but_classes(
    model: nn.Module, checkpoint: object, source: str | Path, classes: tuple[str, ...] | None = None
) -> str:
    """Load a trained model into one with other classes; see `load_strictly`.

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
    return load_strictly(model, checkpoint, source, class_layers(model), keep_fitting=not other)


def fine_tune(runner: Runner) -> None:
    """Load the checkpoint that the config's `init_from` names, unless a run is resumed."""
    source = runner.cfg.get("init_from")
    if not source or resumes(runner):
        return
    model = unwrapped(runner.model)
    dataset: Any = runner.train_dataloader.dataset
    classes = dataset.metainfo.get("classes")
    runner.logger.info(load_all_but_classes(model, read_checkpoint(source), source, classes))
