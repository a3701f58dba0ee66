"""Collect all uses of mmengine's private names in this package.

The functions stand in for public interfaces that mmengine lacks. `PROTECTED` lists what they and
our subclasses of mmengine's classes use. A test holds every name against the installed release.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import (
    BaseLoop,
    CheckpointLoader,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    find_latest_checkpoint,
)
from mmengine.runner.loops import _InfiniteDataloaderIterator, _update_losses
from torch import nn

from backbones.weights import read_checkpoint

update_losses = _update_losses  # of a validation that computes losses too

PROTECTED: dict[type, tuple[str, ...]] = {
    Runner: (
        "_has_loaded",
        "_init_model_weights",
        "_launcher",
        "_load_from",
        "_log_dir",
        "_log_env",
        "_maybe_compile",
        "_randomness_cfg",
        "_resume",
        "_train_loop",
        "_work_dir",
    ),
    EpochBasedTrainLoop: ("_decide_current_val_interval", "_epoch", "_iter"),
    IterBasedTrainLoop: ("_decide_current_val_interval", "_epoch", "_iter"),
    CheckpointHook: (
        "_publish_model",
        "_save_best_checkpoint",
        "_save_checkpoint_with_step",
    ),
    EMAHook: ("_swap_ema_parameters",),
    BaseDataPreprocessor: ("_non_blocking",),
    BaseModel: ("_run_forward",),
    OptimWrapper: ("_accumulative_counts",),
    CheckpointLoader: ("_schemes",),
}


@contextmanager
def safe_checkpoint_loading() -> Iterator[None]:
    """Make mmengine read checkpoint files with `read_checkpoint` within the context.

    Modules that are built or initialized may ask mmengine for a file (`init_cfg`, a teacher's
    weights), and mmengine's own reader runs the code in what it cannot read as plain weights. The
    reader belongs to the process, so it is put back for everybody else. Tensors stay on the CPU;
    the model and the optimizer move their own.
    """

    def load_from_anywhere(filename: str, map_location: object = None) -> Mapping:
        return read_checkpoint(filename)

    former = CheckpointLoader._schemes
    CheckpointLoader._schemes = OrderedDict(former)
    try:
        CheckpointLoader.register_scheme(
            prefixes=["", "http://", "https://", "hf-hub:", "timm:"],
            loader=load_from_anywhere,
            force=True,
        )
        yield
    finally:
        CheckpointLoader._schemes = former


def accumulative_counts(wrapper: OptimWrapper) -> int:
    """Return how many iterations mmengine's own accumulation takes for one optimizer step."""
    return wrapper._accumulative_counts


def is_resuming(runner: Runner) -> bool:
    """Return whether the runner was asked to resume."""
    return bool(runner._resume)


def resumes(runner: Runner) -> bool:
    """Return whether the runner was asked to resume and there is a checkpoint to resume from."""
    return bool(runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir)))


def forward_losses(model: BaseModel, data_batch: object) -> object:
    """Run the forward pass of a training step."""
    return model._run_forward(model.data_preprocessor(data_batch, True), mode="loss")


def copy_without_waiting(model: nn.Module) -> nn.Module:
    """Let a model's batches be copied to its device while the host goes on; return the model.

    From pinned memory they are, in the order of the device's other work.
    """
    for module in model.modules():
        if isinstance(module, BaseDataPreprocessor):
            module._non_blocking = True
    return model


def set_iteration(loop: BaseLoop, iteration: int) -> None:
    """Set the iteration that a training loop continues from."""
    loop._iter = iteration  # pyright: ignore[reportAttributeAccessIssue]


def decide_val_interval(loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> None:
    """Make the loop set its validation interval by its current iteration."""
    loop._decide_current_val_interval()


def restart_batches(loop: BaseLoop) -> None:
    """Begin a training loop's batches anew, if mmengine has begun them when it was built."""
    if isinstance(getattr(loop, "dataloader_iterator", None), _InfiniteDataloaderIterator):
        loop.dataloader_iterator = _InfiniteDataloaderIterator(loop.dataloader)  # pyright: ignore[reportAttributeAccessIssue]


def swap_averaged_weights(hook: EMAHook) -> None:
    """Exchange the weights of the model with their moving average."""
    hook._swap_ema_parameters()
