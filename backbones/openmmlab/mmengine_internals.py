"""All of mmengine's private names that this package relies on.

The functions stand in for public interfaces that mmengine lacks. `PROTECTED` lists what our
subclasses of mmengine's classes use of them. A test holds every name against the installed release.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapper
from mmengine.runner import (
    BaseLoop,
    CheckpointLoader,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
)
from mmengine.runner.loops import _update_losses

from backbones.weights.checkpoints import read_checkpoint

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
    OptimWrapper: ("_accumulative_counts",),
    CheckpointLoader: ("_schemes",),
}


@contextmanager
def safe_checkpoint_loading() -> Iterator[None]:
    """Have mmengine read checkpoint files by `read_checkpoint` within the context.

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
    """Return whether the runner was asked to resume and has something to resume from."""
    return bool(runner._resume)


def set_iteration(loop: BaseLoop, iteration: int) -> None:
    """Set the iteration that a training loop goes on from."""
    loop._iter = iteration  # pyright: ignore[reportAttributeAccessIssue]


def decide_val_interval(loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> None:
    """Have the loop set its validation interval by where it is."""
    loop._decide_current_val_interval()


def swap_averaged_weights(hook: EMAHook) -> None:
    """Exchange the weights of the model with their moving average."""
    hook._swap_ema_parameters()
