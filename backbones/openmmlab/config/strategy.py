"""Choose how several ranks share the work, and reject what FSDP cannot be combined with."""

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS

from backbones.errors import InputError

STRATEGIES = ("ddp", "fsdp")


def check_strategy(config: Config) -> None:
    """Reject an unknown strategy, and what training under FSDP cannot be combined with.

    Raises:
        InputError: names the key and what to set it to.
    """
    strategy = config.get("strategy", "ddp")
    if strategy not in STRATEGIES:
        raise InputError(
            f"config key strategy: {strategy!r} is none of {', '.join(STRATEGIES)}",
            code="bad-value",
            where="strategy",
        )
    if strategy != "fsdp":
        return
    if config.get("launcher", "none") == "none":
        raise _unsupported(
            "launcher",
            "shards the model across ranks; start them with torchrun --nproc-per-node N "
            "tools/train.py CONFIG --launcher pytorch --strategy fsdp",
        )
    for i, hook in enumerate(config.get("custom_hooks") or []):
        kind = hook["type"] if isinstance(hook["type"], type) else HOOKS.get(hook["type"])
        if kind and issubclass(kind, EMAHook):
            raise _unsupported(
                f"custom_hooks.{i}",
                f"{kind.__name__} keeps a second, unsharded copy of the weights; remove it",
            )
    wrapper = config.optim_wrapper
    if "optimizer" not in wrapper:
        raise _unsupported("optim_wrapper", "must have exactly one optimizer")
    if wrapper.get("type") == "AmpOptimWrapper" and wrapper.get("dtype") != "bfloat16":
        raise _unsupported(
            "optim_wrapper.dtype",
            f"{wrapper.get('dtype', 'float16')}; set it to bfloat16, which needs no loss scale",
        )
    if wrapper.get("accumulative_counts", 1) != 1:
        raise _unsupported(
            "optim_wrapper.accumulative_counts",
            "set it to 1 and pass --global-batch, which accumulates without it",
        )
    for key in ("compile", "model_wrapper_cfg"):
        if config.get(key):
            raise _unsupported(key, "cannot be combined with it; remove it")


def _unsupported(key: str, reason: str) -> InputError:
    return InputError(f"--strategy fsdp: config key {key}: {reason}", code="unsupported", where=key)
