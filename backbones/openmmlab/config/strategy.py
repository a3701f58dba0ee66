"""What several ranks share the work by, and what FSDP does not go with."""

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS

from backbones.errors import InputError

STRATEGIES = ("ddp", "fsdp")


def check_strategy(config: Config) -> None:
    """Refuse a strategy there is not, and what training under FSDP does not go with.

    Raises:
        InputError: names the key and what to set it to.
    """
    strategy = config.get("strategy", "ddp")
    if strategy not in STRATEGIES:
        raise InputError(f"config key strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")
    if strategy != "fsdp":
        return
    if config.get("launcher", "none") == "none":
        raise InputError(
            "--strategy fsdp: divides the model among processes; start them with torchrun "
            "--nproc-per-node N tools/train.py CONFIG --launcher pytorch --strategy fsdp"
        )
    for hook in config.get("custom_hooks") or []:
        kind = hook["type"] if isinstance(hook["type"], type) else HOOKS.get(hook["type"])
        if kind and issubclass(kind, EMAHook):
            raise InputError(
                f"--strategy fsdp: {kind.__name__} keeps a second, undivided copy of the weights; "
                "take it out of custom_hooks"
            )
    wrapper = config.optim_wrapper
    if "optimizer" not in wrapper:
        raise InputError("--strategy fsdp: config key optim_wrapper: has to hold one optimizer")
    if wrapper.get("type") == "AmpOptimWrapper" and wrapper.get("dtype") != "bfloat16":
        raise InputError(
            "--strategy fsdp: config key optim_wrapper.dtype: "
            f"{wrapper.get('dtype', 'float16')}; set it to bfloat16, which needs no loss scale"
        )
    if wrapper.get("accumulative_counts", 1) != 1:
        raise InputError(
            "--strategy fsdp: config key optim_wrapper.accumulative_counts: set it to 1 and give "
            "--total-batch, which accumulates without it"
        )
    for key in ("compile", "model_wrapper_cfg"):
        if config.get(key):
            raise InputError(f"--strategy fsdp: config key {key}: does not go with it; remove it")
