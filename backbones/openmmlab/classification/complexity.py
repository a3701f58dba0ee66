"""Run a classifier on one image to count multiply-adds and predict training memory."""

from typing import Any

from mmengine.config import Config
from torch import Tensor

from backbones.errors import InputError
from backbones.openmmlab.tasks import PartRunner


def default_size(config: Config) -> tuple[int, int]:
    """Return the (width, height) of the images that a config evaluates on, or else trains on.

    Raises:
        InputError: no transform of its pipeline has an input_size.
    """
    loader = config.get("test_dataloader") or config.get("train_dataloader") or {}
    for step in (loader.get("dataset") or {}).get("pipeline", ()):
        if "input_size" in step:
            return step.input_size, step.input_size
    raise InputError(
        f"{config.filename}: no transform of dataset.pipeline has an input_size; "
        "give the size to count at",
        code="bad-config",
        where="dataset.pipeline",
    )


def run_parts(model: Any, image: Tensor, run: PartRunner) -> None:
    """Run the network, the only part of a classifier."""
    run("network", model.network, image)


def step_loss(model: Any, batch: Tensor, config: Config) -> Tensor:
    """Return a loss of the logits of a batch (N, 3, H, W)."""
    return model.network(batch).float().logsumexp(1).mean()
